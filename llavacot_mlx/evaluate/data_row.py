"""A row of a data file, whatever the file's layout."""

from __future__ import annotations

from dataclasses import dataclass

from llavacot_mlx.evaluate.question import Index, PictureSource


@dataclass(frozen=True)
class DataRow:
    """A row without its picture, with the columns of VLMEvalKit's files.

    Its cells are those that are not missing.
    """

    index: Index
    cells: dict[str, str]
    picture: PictureSource
    missing_words: frozenset[str] = frozenset()
    """Columns with a word that pandas reads as missing, such as None."""


@dataclass(frozen=True)
class DataFile:
    """The rows of a data set that have a picture, in the order of its file."""

    name: str
    """The path of the file, or of the folder if there are several."""
    layout: str
    """`TSV`, or the name of the layout on the hub."""
    columns: tuple[str, ...]
    rows: tuple[DataRow, ...]
    md5: str
