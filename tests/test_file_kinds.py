"""Files that only stand in for the one they are named after are recognized wherever one is read."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llavacot_mlx.checked import decode_text, read_json, read_yaml, wide_encoding
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import read_header
from llavacot_mlx.errors import UserError
from llavacot_mlx.file_kinds import binary_kind, foreign_kind
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.search.question_file import read_questions
from llavacot_mlx.train.data.dataset import Dataset

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4976698672\n"
)
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\x00" * 4000
KINDS = {
    "Git LFS pointer": POINTER,
    "AppleDouble": APPLE_DOUBLE,
    "HTML page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "server's refusal": b"Invalid username or password.",
    "pickle": pickle.dumps({"weight": [1.0]}),
    "ZIP archive": b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl",
    "GGUF": b"GGUF\x03\x00\x00\x00",
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}
READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": read_header,
    "config.json": read_json,
    "plan.yaml": read_yaml,
    "picture.png": open_image,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_says_what_the_file_is(kind: str, name: str, tmp_path: Path) -> None:
    """A pointer's header "should take 2336927755350992246 bytes", the error once said."""
    file = tmp_path / name
    file.write_bytes(KINDS[kind])
    with pytest.raises(UserError) as caught:
        READERS[name](file)
    assert kind in str(caught.value)
    assert str(file) in str(caught.value)


def pictured(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, form)
    return buffer.getvalue()


FORMS = ("PNG", "JPEG", "GIF", "WebP", "TIFF", "BMP")
BINARY = {
    **{
        f"a {form} picture": pictured(form)
        for form in ("PNG", "JPEG", "GIF", "WebP", "TIFF", "BMP")
    },
    "a PDF": b"%PDF-1.7\n",
    "a video": b"\x00\x00\x00\x18ftypmp42" + bytes(40),
    "an SQLite database": b"SQLite format 3\x00" + bytes(40),
    "a safetensors file": struct.pack("<Q", 120) + b'{"a":{"dtype":"F32","shape":[1]}}',
}


@pytest.mark.parametrize("kind", BINARY)
def test_a_binary_file_in_place_of_a_text_is_named(kind: str, tmp_path: Path) -> None:
    """`data check picture.png` once spoke of plain chats and 274 rows of broken JSON."""
    file = tmp_path / "x"
    file.write_bytes(BINARY[kind])
    with pytest.raises(UserError, match=f"is {kind}, not JSON"):
        read_json(file)
    with pytest.raises(UserError, match=f"is {kind}, not a file of rows"):
        list(read_questions(file, tmp_path))
    assert binary_kind(b'{"a": 1}') is None


@pytest.mark.parametrize("kind", ["Git LFS pointer", "HTML page"])
def test_a_tokenizer_that_is_none(kind: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(KINDS[kind])
    with pytest.raises(UserError, match=kind):
        Tokenizer.load(folder, load_config(folder))


def test_real_files_are_not_suspected(tiny: Path) -> None:
    for file in tiny.iterdir():
        assert foreign_kind(file.read_bytes()) is None, file
    # A header of 8,192,640 bytes begins as a pickle does.
    assert foreign_kind(struct.pack("<Q", 0x7D0280) + b'{"a":') is not None


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    table = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 0x7D0280) + table.ljust(0x7D0280) + b"\x00")
    assert list(read_header(file)) == ["a"]


TEXT = '{"image": "a.png", "question": "What is é?"}\n'


@pytest.mark.parametrize("name", ["x.json", "x.yaml"])
def test_a_byte_order_mark_is_skipped(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(TEXT.encode("utf-8-sig"))
    read = read_json if name.endswith("json") else read_yaml
    assert read(file) == json.loads(TEXT)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_utf_16_is_named(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(TEXT.encode(encoding))
    with pytest.raises(UserError, match=r"UTF-(16|32).*save it as UTF-8"):
        read_json(file)


@pytest.mark.parametrize("text", ["", "1", "[]", "{}", "né", "12345"])
def test_short_texts_are_utf_8(text: str) -> None:
    assert wide_encoding(text.encode()) is None
    assert decode_text(text.encode()) == text


def test_rows_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Its first row was "broken JSON", and `--skip-bad` lost it."""
    (tmp_path / "a.png").write_bytes(b"")
    file = tmp_path / "rows.jsonl"
    file.write_bytes((TEXT + TEXT).encode("utf-8-sig"))
    assert [row.question for row in read_questions(file, tmp_path)] == ["What is é?"] * 2
    row = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}],
    }
    file.write_bytes(json.dumps(row).encode("utf-8-sig"))
    dataset = Dataset.open(file, tmp_path)
    assert (len(dataset), dataset.line(0)) == (1, 1)
    assert dataset.conversation(0).image == "a.png"


def test_rows_in_utf_16_are_one_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes((TEXT * 3).encode("utf-16"))
    for read in (lambda: list(read_questions(file, tmp_path)), lambda: Dataset.open(file, None)):
        with pytest.raises(UserError, match=r"rows\.jsonl: it is UTF-16 text"):
            read()
