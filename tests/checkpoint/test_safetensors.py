"""Headers of weight files are distrusted: a file that lies is one clear error, never a crash."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llavacot_mlx.checkpoint.safetensors import list_tensors, read_header
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME
from llavacot_mlx.errors import UserError

IN_ONE_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict:
    """An entry of a header: a vector of float32 that fits, if nothing else is said."""
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(file: Path, table: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with the header `table`, given as bytes or to be JSON; `length` is what it claims."""
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def message(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_header(file)
    said = str(caught.value)
    assert str(file) in said
    assert "\n" not in said
    return said


def test_what_mlx_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    arrays = {
        "a.weight": mx.zeros((2, 3), mx.bfloat16),
        "b": mx.zeros((), mx.float32),
        "c": mx.zeros((5,), mx.uint8),
        "empty": mx.zeros((0, 4), mx.float16),
    }
    mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
    entries = read_header(file)
    assert {name: e.shape for name, e in entries.items()} == {n: a.shape for n, a in arrays.items()}
    assert {name: e.nbytes for name, e in entries.items()} == {
        name: array.nbytes for name, array in arrays.items()
    }
    assert {e.dtype for e in entries.values()} == {"BF16", "F32", "U8", "F16"}


TOO_LONG_FOR_MEMORY = 2**63


@pytest.mark.parametrize(
    ("table", "data", "length", "says"),
    [
        pytest.param({"w": entry(0, 16)}, b"x" * 12, None, "truncated", id="beyond the file"),
        pytest.param({"w": entry(0, 16)}, b"", None, "truncated", id="no data at all"),
        pytest.param(
            {"v": entry(0, 16), "w": entry(8, 24)}, b"x" * 24, None, "overlaps", id="overlap"
        ),
        pytest.param({"v": entry(0, 8), "w": entry(0, 8)}, b"x" * 8, None, "overlaps", id="same"),
        pytest.param({"v": entry(0, 8), "w": entry(12, 16)}, b"x" * 16, None, "gap", id="gap"),
        pytest.param({"w": entry(4, 8)}, b"x" * 8, None, "gap", id="not from the start"),
        pytest.param({"w": entry(0, 8, [3])}, b"x" * 8, None, "'w'", id="shape too large"),
        pytest.param({"w": entry(0, 8, [1])}, b"x" * 8, None, "'w'", id="shape too small"),
        pytest.param({"w": entry(0, 8, [])}, b"x" * 8, None, "'w'", id="scalar of two"),
        pytest.param(
            {"w": entry(0, 8, [2**62, 2**62])}, b"x" * 8, None, "'w'", id="more than there is"
        ),
        pytest.param({"w": entry(0, 8, [-2])}, b"x" * 8, None, "malformed", id="negative shape"),
        pytest.param({"w": entry(0, 8, [2.0])}, b"x" * 8, None, "malformed", id="broken shape"),
        pytest.param({"w": entry(8, 0, [2])}, b"x" * 8, None, "malformed", id="backwards"),
        pytest.param({"w": entry(-8, 0, [2])}, b"x" * 8, None, "malformed", id="before the start"),
        pytest.param({"w": entry(0, 8, dtype="F12")}, b"x" * 8, None, "'F12'", id="unknown type"),
        pytest.param({"w": entry(0, 8, dtype=[])}, b"x" * 8, None, "malformed", id="type a list"),
        pytest.param({"w": 3}, b"x" * 8, None, "malformed", id="no entry"),
        pytest.param({"w": {"dtype": "F32"}}, b"", None, "malformed", id="entry without fields"),
        pytest.param([], b"", None, "not valid JSON", id="no table"),
        pytest.param(b"{", b"", None, "not valid JSON", id="no JSON"),
        pytest.param(b"\xff\xfe", b"", None, "not valid JSON", id="no text"),
        pytest.param(b"[" * 100_000, b"", None, "not valid JSON", id="too deep"),
        pytest.param({}, b"", 99, "truncated", id="header longer than the file"),
        pytest.param({}, b"", TOO_LONG_FOR_MEMORY, "truncated", id="header without end"),
    ],
)
def test_a_header_that_lies(
    table: object, data: bytes, length: int | None, says: str, tmp_path: Path
) -> None:
    assert says in message(write(tmp_path / "w.safetensors", table, data, length))


@pytest.mark.parametrize("content", [b"", b"\x02\0\0", b"PK\x01\x02" * 8], ids=len)
def test_a_file_that_is_something_else(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    assert "truncated" in message(file)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    assert "missing" in message(tmp_path / "w.safetensors")


def test_a_folder_with_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").mkdir()
    assert "cannot be read" in message(tmp_path / "w.safetensors")


@IN_ONE_FOLDER
@given(cut=st.integers(0, 200))
def test_a_download_that_broke_off_anywhere(cut: int, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors", {"w": entry(0, 80)}, b"x" * 80).read_bytes()
    file = tmp_path / "cut.safetensors"
    file.write_bytes(whole[:cut])
    if cut >= len(whole):
        assert list(read_header(file)) == ["w"]
    else:
        assert "truncated" in message(file)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BOOL", "F4"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-2, 40), min_size=2, max_size=2) | JSON_VALUES,
    },
)


@IN_ONE_FOLDER
@given(table=st.dictionaries(st.text(max_size=3), FIELDS, max_size=3) | JSON_VALUES)
@example(table={"w": {"dtype": "F32", "shape": "12", "data_offsets": [0, 8]}})
@example(table={"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}})
@example(table={"__metadata__": 3})
def test_whatever_the_header_says_it_is_read_or_refused(table: object, tmp_path: Path) -> None:
    """What is read lies within the file and does not overlap; all else is the user's error.

    Nor does MLX crash on what was let through. A type that was a list was once a TypeError.
    """
    file = write(tmp_path / "w.safetensors", table, b"\0" * 32)
    try:
        entries = read_header(file)
    except UserError:
        return
    assert sum(e.nbytes for e in entries.values()) <= 32
    try:
        assert mx.load(str(file)).keys() == entries.keys()
    except RuntimeError:  # which `read_tensors` turns into the user's error
        return


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    """All its safetensors files count, and a name in two of them is an error."""
    write(tmp_path / "a.safetensors", {"v": entry(0, 8)}, b"x" * 8)
    write(tmp_path / "b.safetensors", {"w": entry(0, 8)}, b"x" * 8)
    assert sorted(list_tensors(tmp_path)) == ["v", "w"]
    write(tmp_path / "c.safetensors", {"v": entry(0, 8)}, b"x" * 8)
    with pytest.raises(UserError, match=r"'v' is both in .*a\.safetensors and in .*c\.safetensors"):
        list_tensors(tmp_path)


def indexed(folder: Path, weight_map: object) -> Path:
    """A folder with `v` in a.safetensors, `w` in b.safetensors, and an index."""
    write(folder / "a.safetensors", {"v": entry(0, 8)}, b"x" * 8)
    write(folder / "b.safetensors", {"w": entry(0, 8)}, b"x" * 8)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder


def test_a_folder_with_an_index(tmp_path: Path) -> None:
    """Files that it does not name do not count."""
    indexed(tmp_path, {"v": "a.safetensors", "w": "b.safetensors"})
    write(tmp_path / "adapter.safetensors", {"v": entry(0, 8)}, b"x" * 8)
    tensors = list_tensors(tmp_path)
    assert {name: e.file.name for name, e in tensors.items()} == {
        "v": "a.safetensors",
        "w": "b.safetensors",
    }


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/tmp/x.safetensors",
        "below/x.safetensors",
        "..",
        "",
        "a.bin",
        "a.safetensors.py",
        "a.safetensors\0",
    ],
)
def test_an_index_that_points_elsewhere(shard: str, tmp_path: Path) -> None:
    """Only safetensors files beside the index are read, whether they are there or not."""
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for place in (tmp_path, folder / "below"):
        write(place / "x.safetensors", {"v": entry(0, 8)}, b"x" * 8)
    indexed(folder, {"v": shard, "w": "b.safetensors"})
    with pytest.raises(UserError, match="only safetensors files beside the index") as caught:
        list_tensors(folder)
    assert repr(shard) in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"v": "a.safetensors", "w": "c.safetensors"}, r"c\.safetensors is missing"),
        ({"v": "a.safetensors", "w": "a.safetensors"}, r"'w' is in a\.safetensors, but"),
        ({"v": "a.safetensors", "u": "b.safetensors"}, r"'u' is in b\.safetensors, but"),
        ({"v": "a.safetensors"}, None),
        ({"w": "b.safetensors", "v": 3}, "weight_map.v: expected a text"),
        (["a.safetensors"], "weight_map: expected an object"),
    ],
)
def test_an_index_that_is_wrong(weight_map: object, says: str | None, tmp_path: Path) -> None:
    indexed(tmp_path, weight_map)
    if says is None:  # it leaves a file out, which is its right
        assert list(list_tensors(tmp_path)) == ["v"]
        return
    with pytest.raises(UserError, match=says):
        list_tensors(tmp_path)


def test_a_shard_with_more_than_the_index_says(tmp_path: Path) -> None:
    indexed(tmp_path, {"v": "a.safetensors", "w": "b.safetensors"})
    write(tmp_path / "b.safetensors", {"w": entry(0, 8), "z": entry(8, 16)}, b"x" * 16)
    with pytest.raises(UserError, match=r"b\.safetensors holds 'z'"):
        list_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=f"pickled weights.*{name}.*safetensors version"):
        list_tensors(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        list_tensors(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        list_tensors(tmp_path / "nowhere")


@pytest.mark.parametrize("off", [-1, -8, 1])
def test_a_length_that_is_a_little_off(off: int, tmp_path: Path) -> None:
    """One byte less, and every value was read from shifted bytes; the answer came all the same."""
    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"a": mx.zeros((4,)), "b": mx.ones((4,))})
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length].decode().strip()
    padded = f"{text:<{length + 8}}".encode()
    file.write_bytes(struct.pack("<Q", len(padded)) + padded + data[8 + length :])
    assert read_header(file).keys() == {"a", "b"}
    file.write_bytes(struct.pack("<Q", len(padded) + off) + padded + data[8 + length :])
    assert "the header lies" in message(file) or "not valid JSON" in message(file)


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"a": mx.zeros((4,))})
    file.write_bytes(file.read_bytes() + b"more")
    assert "4 bytes follow its last tensor" in message(file)


def test_a_header_in_utf_16(tmp_path: Path) -> None:
    """Python's JSON reads it, and what came after did not."""
    header = json.dumps({"a": entry(0, 4, [1])}).encode("utf-16")
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "not valid JSON" in message(file)
