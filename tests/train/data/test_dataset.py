"""The file of training rows: found once, read where a row is wanted, and never held."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.rows.problem import ProblemKind, RowError
from llavacot_mlx.train.data.dataset import Dataset, open_splits


def line(number: int, **more: str) -> str:
    turns = [{"from": "human", "value": f"Row {number}?"}, {"from": "gpt", "value": "Ü" * number}]
    return json.dumps({"conversations": turns, **more}, ensure_ascii=False)


def written(file: Path, lines: list[str]) -> Path:
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_rows_are_read_by_their_place(tmp_path: Path) -> None:
    """Empty lines are no rows, yet count in the number that a message tells."""
    file = written(tmp_path / "rows.jsonl", [line(1), "", " \t", line(2), line(3, image="a/b.png")])
    dataset = Dataset.open(file, tmp_path)
    assert len(dataset) == 3
    assert [dataset.conversation(row).answers for row in (2, 0, 1)] == [("ÜÜÜ",), ("Ü",), ("ÜÜ",)]
    assert [dataset.line(row) for row in range(3)] == [1, 4, 5]
    assert dataset.conversation(1).where == dataset.where(1) == f"{file}, row 4"
    assert [dataset.image_path(row) for row in (0, 2)] == [None, tmp_path / "a" / "b.png"]
    assert dataset.digest == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ends_of_lines(tmp_path: Path, end: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(end.join([line(1), line(2), ""]).encode())
    dataset = Dataset.open(tmp_path / "rows.jsonl", None)
    assert [dataset.conversation(row).answers for row in range(2)] == [("Ü",), ("ÜÜ",)]


def test_pictures_are_beside_the_file_unless_told(tmp_path: Path) -> None:
    dataset = Dataset.open(written(tmp_path / "rows.jsonl", [line(1, image="a.png")]), None)
    assert dataset.image_path(0) == tmp_path / "a.png"


def test_the_rows_are_not_kept(tmp_path: Path) -> None:
    """Two megabytes a row are read again for every use."""
    row = line(1, padding="x" * 2**21)
    file = written(tmp_path / "rows.jsonl", [row] * 20)
    tracemalloc.start()
    dataset = Dataset.open(file, None)
    for number in range(len(dataset)):
        dataset.conversation(number)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2**16
    assert peak < 6 * len(row)  # a row in its forms, and not the file


def test_what_is_held_of_a_row(tmp_path: Path) -> None:
    dataset = Dataset.open(written(tmp_path / "rows.jsonl", [line(1)] * 1000), None)
    arrays = [value for value in vars(dataset.rows).values() if hasattr(value, "itemsize")]
    assert sum(map(sys.getsizeof, arrays)) < 20 * 1000


def test_threads_may_read(tmp_path: Path) -> None:
    dataset = Dataset.open(written(tmp_path / "rows.jsonl", [line(n) for n in range(1, 60)]), None)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: dataset.conversation(row).answers[0], range(59)))
    assert found == ["Ü" * number for number in range(1, 60)]


def test_a_row_that_is_wrong_is_met_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"{\n" + line(1).encode() + b"\n\xff\xfe\n")
    dataset = Dataset.open(file, None)
    assert dataset.conversation(1).answers == ("Ü",)
    for row, number in ((0, 1), (2, 3)):
        with pytest.raises(RowError, match=rf"row {number}: not") as raised:
            dataset.conversation(row)
        assert raised.value.kind is ProblemKind.NOT_JSON


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    """The places of the rows would be those of another file."""
    file = written(tmp_path / "rows.jsonl", [line(1), line(2)])
    dataset = Dataset.open(file, None)
    written(file, [line(11), line(2)])
    with pytest.raises(UserError, match="was changed while it was in use"):
        dataset.conversation(1)


@pytest.mark.parametrize(
    ("row", "staged"),
    [
        ('{"messages": [], "x": "<CAPTION> a"}', True),
        (r'{"messages": [], "x": "\u003cSUMMARY\u003e a"}', True),
        ('{"conversations": []}', True),
        ('{"messages": [], "x": "a SUMMARY of conversations"}', False),
    ],
)
def test_files_of_stages_and_of_plain_chats(tmp_path: Path, row: str, staged: bool) -> None:
    file = written(tmp_path / "rows.jsonl", ["{}", row, "{}"])
    assert Dataset.open(file, None).has_stages is staged


def test_files_that_are_none(tmp_path: Path) -> None:
    empty = written(tmp_path / "empty.jsonl", ["", " "])
    for path, images, said in (
        (tmp_path / "gone.jsonl", None, "gone.jsonl: No such file"),
        (tmp_path, None, "is a folder"),
        (Path("/dev/zero"), None, "plain file"),
        (empty, None, "no row in it"),
        (empty, tmp_path / "gone", "gone: there is no such folder"),
    ):
        with pytest.raises(UserError, match=said):
            Dataset.open(path, images)


def test_a_folder_of_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train\.jsonl in this folder"):
        open_splits(tmp_path, None)
    written(tmp_path / "train.jsonl", [line(1), line(2)])
    splits = open_splits(tmp_path, None)
    assert (len(splits.train), splits.valid, splits.test) == (2, None, None)
    written(tmp_path / "valid.jsonl", [line(3)])
    written(tmp_path / "test.jsonl", [line(4)] * 3)
    splits = open_splits(tmp_path, tmp_path)
    assert splits.valid is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (2, 1, 3)
    alone = open_splits(tmp_path / "valid.jsonl", None)
    assert (len(alone.train), alone.valid, alone.test) == (1, None, None)
