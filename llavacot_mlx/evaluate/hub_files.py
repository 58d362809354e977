"""Reads the benchmarks as they lie on the hub, as rows with the columns of VLMEvalKit's files."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavacot_mlx.checked import read_json
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.data_row import DataFile, DataRow
from llavacot_mlx.evaluate.file_picture import file_picture
from llavacot_mlx.evaluate.known_set import KnownSet
from llavacot_mlx.evaluate.paper import AI2D, AI2D_NO_MASK, HALLUSIONBENCH, MATHVISTA, MMSTAR, MMVET
from llavacot_mlx.evaluate.prompts import mathvista_prompt
from llavacot_mlx.evaluate.question import Index, PictureSource
from llavacot_mlx.evaluate.tsv_file import MISSING
from llavacot_mlx.evaluate.yes_no_inference import NO, YES

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PICTURES = ("image", "decoded_image")
V1_0_COLUMN = "L2-category"
"""A column that only V1.0 of MMBench has."""

_Record = Mapping[str, Any]


def find_hub_files(known: KnownSet, folder: Path) -> list[Path]:
    """The files of a set's data sets on the hub below a folder: parquet, or its authors' JSON."""
    for name in known.hub:
        for place in (folder / name, folder / name.lower()):
            if found := _files_in(known, place):
                return found
    is_its_own = folder.name.casefold() in [name.casefold() for name in known.hub]
    return _files_in(known, folder) if is_its_own else []


def _files_in(known: KnownSet, folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    for name in ("mm-vet.json", "HallusionBench.json"):
        if known.name in (MMVET, HALLUSIONBENCH) and (folder / name).is_file():
            return [folder / name]
    found = sorted(folder.rglob("*.parquet"))
    named = [file for file in found if file.name.startswith(known.split)]
    return named if known.split else found


def read_hub_files(known: KnownSet, files: Sequence[Path]) -> DataFile:
    """Reads a set from files of the hub.

    Raises UserError, which names the file, for one that cannot be read, and for V1.0 of MMBench.
    """
    if files[0].suffix == ".json":
        records: Iterator[tuple[_Record, PictureSource | None]] = _json_records(known, files[0])
    else:
        records = _parquet_records(known, files)
    convert = _CONVERTERS.get(known.name)
    rows, columns = [], dict.fromkeys(("index", "question", "image"))
    for number, (record, picture) in enumerate(records):
        if picture is None:
            continue
        cells = {key: str(value) for key, value in record.items() if value is not None}
        try:
            index, made = (number, cells) if convert is None else convert(record, number)
        except (KeyError, TypeError, ValueError) as problem:
            raise UserError(
                f"{files[0]}: row number {number + 1} is not as in this set's data on the hub: "
                f"{type(problem).__name__} {problem}"
            ) from None
        columns |= dict.fromkeys(made)
        words = frozenset(name for name, text in made.items() if text and text in MISSING)
        kept = {name: text for name, text in made.items() if text not in MISSING}
        rows.append(DataRow(index, kept, picture, words))
    if not rows:
        raise UserError(f"{files[0]}: it has no rows with a picture")
    _check_columns(known, files[0], tuple(columns))
    name = str(files[0] if len(files) == 1 else files[0].parent)
    return DataFile(name, known.hub[0], tuple(columns), tuple(rows), _md5(files))


def _check_columns(known: KnownSet, file: Path, columns: tuple[str, ...]) -> None:
    missing = [column for column in known.columns if column not in columns]
    if missing:
        raise UserError(
            f"{file}: missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(columns)}"
        )


def _md5(files: Sequence[Path]) -> str:
    digest = hashlib.md5()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "md5").digest())
    return digest.hexdigest()


# --- Parquet ---


@dataclass(frozen=True)
class _ParquetPicture:
    """A picture in a column of a parquet file, which is read again when it is needed."""

    file: Path
    column: str
    group: int
    row: int
    digest: str
    is_file: bool = True

    def read(self) -> bytes:
        data = _column_of_group(self.file, self.column, self.group)[self.row]
        found = _picture_bytes(data)
        if found is None or hashlib.sha256(found).hexdigest() != self.digest:
            raise UserError(f"{self.file}: the file has changed since the run began")
        return found


@functools.lru_cache(maxsize=1)
def _column_of_group(file: Path, column: str, group: int) -> list[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as source:
        values: list[Any] = source.read_row_group(group, columns=[column])[column].to_pylist()
    return values


def _picture_bytes(value: Any) -> bytes | None:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


def _parquet_records(
    known: KnownSet, files: Sequence[Path]
) -> Iterator[tuple[_Record, PictureSource | None]]:
    import pyarrow
    import pyarrow.parquet

    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as source:
                names = source.schema_arrow.names
                if known.name.startswith("mmbench") and V1_0_COLUMN in names:
                    raise UserError(
                        f"{file}: this is MMBench V1.0, and {known.name} is V1.1: download "
                        f"{known.url}"
                    )
                column = _picture_column(file, source.schema_arrow)
                for group in range(source.num_row_groups):
                    table = source.read_row_group(group)
                    pictures = table[column].to_pylist()
                    others = table.drop_columns([column]).to_pylist()
                    for row, record in enumerate(others):
                        picture: PictureSource | None = None
                        if data := _picture_bytes(pictures[row]):
                            digest = hashlib.sha256(data).hexdigest()
                            picture = _ParquetPicture(file, column, group, row, digest)
                        yield record, picture
        except (pyarrow.ArrowException, OSError) as problem:
            reason = " ".join(str(problem).split())
            raise UserError(f"{file}: is not a whole parquet file: {reason}") from None


def _picture_column(file: Path, schema: Any) -> str:
    """The column with the bytes of pictures; MathVista has another one with their names."""
    for name in reversed(_PICTURES):
        if name in schema.names and "binary" in str(schema.field(name).type):
            return name
    raise UserError(f"{file}: has no column image with the bytes of pictures")


# --- The authors' own JSON ---


def _json_records(known: KnownSet, file: Path) -> Iterator[tuple[_Record, PictureSource | None]]:
    value = read_json(file)
    if known.name == MMVET:
        if not isinstance(value, dict):
            raise UserError(f'{file}: expected an object like {{"v1_0": {{"question": …}}}}')
        entries = [{"index": name, **record} for name, record in value.items()]
        key = "imagename"
    else:
        if not isinstance(value, list):
            raise UserError(f"{file}: expected a list of objects")
        entries, key = value, "filename"
    for entry in entries:
        name = entry.get(key)
        yield entry, file_picture(file.parent, name) if name else None


# --- From the records of a layout to the columns of VLMEvalKit's file ---


def _mmstar(record: _Record, number: int) -> tuple[Index, dict[str, str]]:
    cells = {
        key: str(value)
        for key, value in record.items()
        if value is not None and key not in ("index", "meta_info")
    }
    if "A" not in cells:
        question, options = split_mmstar_question(cells["question"])
        cells |= {"question": question, **options}
    source = record.get("meta_info")
    if "bench" not in cells and isinstance(source, dict):
        cells["bench"] = str(source.get("source"))
    return int(record.get("index", number)), cells


def split_mmstar_question(text: str) -> tuple[str, dict[str, str]]:
    """Splits a question of MMStar's layout on the hub into the question and its options.

    Most end in a line `Options: A: …, B: …`, which the question is cut at. The others, which are
    MathVista's, carry their options as lines `(A) …` and stay whole, as in VLMEvalKit's file.
    Raises ValueError for a question of neither kind.
    """
    question, found, listed = text.rpartition("\nOptions: A: ")
    if found:
        options = {}
        for letter, following in zip("ABC", "BCD", strict=True):
            options[letter], _, listed = listed.partition(f", {following}: ")
            if not listed:
                break
        else:
            options["D"] = listed
        return question, {key: each.rstrip() for key, each in options.items()}
    lines = dict(re.findall(r"^\(([A-D])\)[ \t]*(.*)$", text, re.MULTILINE))
    if "A" not in lines:
        raise ValueError("its question has no options")
    return text, lines


def _ai2d(record: _Record, number: int) -> tuple[Index, dict[str, str]]:
    options = dict(zip(_LETTERS, map(str, record["options"]), strict=False))
    answer = _LETTERS[int(record["answer"])]
    return number, {"question": str(record["question"]), **options, "answer": answer}


def _mathvista(record: _Record, number: int) -> tuple[Index, dict[str, str]]:
    about = record.get("metadata") or {}
    choices = [str(choice) for choice in record.get("choices") or ()]
    precision = record.get("precision")
    query = record.get("query") or mathvista_prompt(
        str(record["question"]),
        answer_type=str(record["answer_type"]),
        precision=None if precision is None else int(precision),
        unit=record.get("unit"),
        choices=choices,
    )
    cells = {
        "question": query,
        "answer": str(record["answer"]),
        "question_type": str(record["question_type"]),
        "answer_type": str(record["answer_type"]),
        "choices": str(choices),
        "skills": str(list(about.get("skills") or ())),
        "task": str(about.get("task", "")),
        "source": str(about.get("source", "")),
    }
    if precision is not None:
        cells["precision"] = str(int(precision))
    if choices and record["answer"] in choices:
        cells["answer_option"] = _LETTERS[choices.index(record["answer"])]
    return int(record.get("pid", number + 1)), cells


def _hallusion(record: _Record, number: int) -> tuple[Index, dict[str, str]]:
    category, sub = str(record["category"]), str(record["subcategory"])
    parts = [record[key] for key in ("visual_input", "set_id", "figure_id", "question_id")]
    index = "_".join(map(str, (category, sub, *parts)))
    answer = YES if str(record["gt_answer"]).strip() == "1" else NO
    return index, {
        "question": str(record["question"]),
        "answer": answer,
        "category": category,
        "l2-category": f"{category}_{sub}",
    }


def _mmvet(record: _Record, number: int) -> tuple[Index, dict[str, str]]:
    index = str(record["index"]).rpartition("_")[2]
    return int(index), {
        "question": str(record["question"]),
        "answer": str(record["answer"]),
        "category": ",".join(record["capability"]),
    }


_CONVERTERS: dict[str, Callable[[_Record, int], tuple[Index, dict[str, str]]]] = {
    MMSTAR: _mmstar,
    AI2D: _ai2d,
    AI2D_NO_MASK: _ai2d,
    MATHVISTA: _mathvista,
    HALLUSIONBENCH: _hallusion,
    MMVET: _mmvet,
}
