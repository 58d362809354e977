"""Finds the sets that a person named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llavacot_mlx.checked import nearest
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate import shapes
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet
from llavacot_mlx.evaluate.hub_files import V1_0_COLUMN, find_hub_files, read_hub_files
from llavacot_mlx.evaluate.known_set import BY_NAME, BY_TSV, MMBENCH_TEST, KnownSet
from llavacot_mlx.evaluate.paper import MMBENCH
from llavacot_mlx.evaluate.set_questions import known_set, other_set
from llavacot_mlx.evaluate.tsv_file import read_tsv, tsv_columns

_V1_0 = {"MMBench_DEV_EN": 4329, "MMBench_TEST_EN": 6666}
"""Rows of the older files, whose questions are others."""


def open_sets(
    names: str, data: Path | None, *, first: int = 0, limit: int | None = None, until: bool = False
) -> list[BenchmarkSet]:
    """Opens the sets of a list of names with commas between them.

    `data` is the folder of the data files. `first` is the number of the first question of shapes.
    Raises UserError for an unknown name, and for data that is missing or wrong.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UserError("--set: name a set, such as shapes")
    twice = next((name for name in wanted if wanted.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--set {names}: {twice} stands twice")
    if first and not any(map(is_shapes, wanted)):
        raise UserError(f"--first {first}: only the questions of shapes have a first one")
    folder = data_folder() if data is None else data.expanduser()
    if not all(map(is_shapes, wanted)) and data is not None and not folder.is_dir():
        raise UserError(f"--data {data}: there is no such folder")
    return list(_opened(wanted, folder, first, limit, until))


def data_folder() -> Path:
    """Where VLMEvalKit keeps its data."""
    return Path(os.environ.get("LMUData") or "~/LMUData").expanduser()  # noqa: SIM112 (its name)


def _opened(
    wanted: list[str], folder: Path, first: int, limit: int | None, until: bool
) -> Iterator[BenchmarkSet]:
    for name in wanted:
        if is_shapes(name):
            count = shapes.MAX_COUNT if until else limit
            yield shapes.open_shapes(name, first=first, count=count)
        elif name in BY_NAME:
            yield _open_known(BY_NAME[name], folder)
        elif "/" in name or name.casefold().endswith(".tsv"):
            yield _open_file(Path(name).expanduser())
        else:
            known = ["shapes", *BY_NAME]
            close = nearest(name.casefold(), known)
            hint = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"--set {name}: {hint}, or name a TSV file")


def is_shapes(name: str) -> bool:
    """Whether a name is that of the embedded world."""
    return name.partition(":")[0] == shapes.NAME


def _open_file(path: Path) -> BenchmarkSet:
    """The set in a file that was named: a published one if it has that name."""
    if path.stem in BY_TSV and path.suffix == ".tsv":
        return _read_known(BY_TSV[path.stem], path)
    return other_set(path.stem, read_tsv(path))


def _open_known(known: KnownSet, folder: Path) -> BenchmarkSet:
    for name in (known.tsv, known.name):
        path = folder / f"{name}.tsv"
        if path.exists():
            return _read_known(known, path)
    if files := find_hub_files(known, folder):
        return known_set(known, read_hub_files(known, files))
    older = known.tsv.removesuffix("_V11")
    if older in _V1_0 and (folder / f"{older}.tsv").exists():
        raise _is_older(known, folder / f"{older}.tsv")
    raise UserError(
        f"{folder / known.tsv}.tsv: there is no such file; name its folder with --data, or "
        f"download {known.url}"
    )


def _read_known(known: KnownSet, path: Path) -> BenchmarkSet:
    is_mmbench = known.name in (MMBENCH, MMBENCH_TEST)
    if is_mmbench and V1_0_COLUMN in tsv_columns(path):
        raise _is_older(known, path)
    file = read_tsv(path, known.columns)
    if is_mmbench and len(file.rows) == _V1_0[known.tsv.removesuffix("_V11")]:
        raise _is_older(known, path)
    return known_set(known, file)


def _is_older(known: KnownSet, path: Path) -> UserError:
    return UserError(
        f"{path}: this is MMBench V1.0, and {known.name} is V1.1: download {known.url}"
    )
