"""Finds the pictures of a run's questions where its data still is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llavacot_mlx.demo.scenes import TEST
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.data_row import DataFile
from llavacot_mlx.evaluate.hub_files import read_hub_files
from llavacot_mlx.evaluate.known_set import BY_NAME
from llavacot_mlx.evaluate.question import PictureSource
from llavacot_mlx.evaluate.question_file import StoredQuestion
from llavacot_mlx.evaluate.run_folder import RunRecord, SetRecord
from llavacot_mlx.evaluate.shapes import DrawnPicture
from llavacot_mlx.evaluate.tsv_file import read_tsv


class RunPictures:
    """The pictures of a run, read from its data files when the first of a set is asked for."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._sets: dict[str, Mapping[int | str, PictureSource]] = {}
        self.lost: dict[str, str] = {}
        """Why a set has no pictures, by its name."""

    def read(self, question: StoredQuestion) -> bytes | None:
        """The picture's file; None where the data is gone, is another, or does not have it."""
        about = self._record.sets[question.set]
        try:
            if about.task is Task.SHAPES:
                return DrawnPicture(TEST.seed(int(question.index))).read()
            if question.set not in self._sets:
                self._sets[question.set] = {}
                self._sets[question.set] = _pictures(question.set, about)
            source = self._sets[question.set].get(question.index)
            return None if source is None else source.read()
        except UserError as problem:
            self.lost.setdefault(question.set, str(problem))
            return None


def _pictures(name: str, about: SetRecord) -> dict[int | str, PictureSource]:
    file = _file(name, about)
    if file.md5 != about.source["md5"]:
        raise UserError(f"{file.name}: is another file than the run's")
    return {row.index: row.picture for row in file.rows}


def _file(name: str, about: SetRecord) -> DataFile:
    path = Path(str(about.source["file"]))
    if about.source["layout"] == "TSV":
        return read_tsv(path)
    known = BY_NAME[name]
    if not path.exists():
        raise UserError(f"{path}: is not there any more")
    files = sorted(path.rglob(f"{known.split}*.parquet")) if path.is_dir() else [path]
    return read_hub_files(known, files)
