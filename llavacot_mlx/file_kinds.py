"""Recognizes what a file really is from its first bytes, whatever its name says."""

from __future__ import annotations

import re
from pathlib import Path

_START_BYTES = 512

_HTML = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)
_HUB_REFUSAL = re.compile(
    rb"\s*(Entry not found|Repository not found|Invalid username or password|Invalid credentials|"
    rb"Access to model .{1,200} is restricted|Unauthorized|Not Found|Forbidden)"
)
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_APPLE_SINGLE = b"\x00\x05\x16\x00"


def foreign_kind(start: bytes) -> str | None:
    """Describes a file that only stands in for the one it is named after, and what to do about it.

    `start` is at least its first few hundred bytes. Returns None for a file that is none of them,
    which includes every safetensors and JSON file and every picture.
    """
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself: run git lfs pull in its folder"
    if start.startswith((_APPLE_DOUBLE, _APPLE_SINGLE)):
        return "an AppleDouble file of macOS, which holds no data: copy the real file again"
    if _HTML.match(start):
        return "an HTML page, probably a login or error page: download the file itself again"
    if _HUB_REFUSAL.match(start):
        return (
            "a server's refusal saved as a file: log in with hf auth login, and download it again"
        )
    if start.startswith(b"PK\x03\x04"):
        return "a ZIP archive or a pickle of PyTorch: unpack it, or get the safetensors version"
    if re.match(rb"\x80[\x02-\x05][}\]\x8a\x8c\x95(cX]", start):
        return "a pickle, which can run code when read: get the safetensors version"
    if start.startswith(b"GGUF"):
        return "a GGUF file: get the safetensors version"
    if start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\x00")):
        return "a compressed file: unpack it first"
    return None


# None of them begins JSON, YAML or CSV.
_NOT_TEXT = (
    (re.compile(rb"\x89PNG\r\n"), "a PNG picture"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG picture"),
    (re.compile(rb"GIF8[79]a"), "a GIF picture"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "a WebP picture"),
    (re.compile(rb"II\*\x00|MM\x00\*"), "a TIFF picture"),
    (re.compile(rb"BM.{4}\x00\x00\x00\x00", re.DOTALL), "a BMP picture"),
    (re.compile(rb".{4}ftyp(avif|avis|mif1|msf1|hei[cfmsx]|hev[cx])", re.DOTALL), "a picture"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a video"),
    (re.compile(rb"%PDF-"), "a PDF"),
    (re.compile(rb"SQLite format 3\x00"), "an SQLite database"),
    (re.compile(rb".{6}\x00\x00\{\"", re.DOTALL), "a safetensors file"),
)


def binary_kind(start: bytes) -> str | None:
    """Describes a binary file that was given in place of a text, by its first bytes."""
    return next((kind for pattern, kind in _NOT_TEXT if pattern.match(start)), None)


def foreign_kind_of(file: Path) -> str | None:
    """`foreign_kind` of a file on the disk; None if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return foreign_kind(stream.read(_START_BYTES))
    except OSError:
        return None
