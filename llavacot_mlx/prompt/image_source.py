"""What a person gave as an image becomes the bytes of a file: a name, a URI, or the image itself.

A name is looked for as it is written, then as a terminal or another system may have changed it: in
quotes, with escaped spaces, with backslashes, with another kind of space or another Unicode form.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from llavacot_mlx.bounded_read import NotRegularError, TooLargeError, read_file
from llavacot_mlx.checked import quoted
from llavacot_mlx.errors import UserError

MAX_IMAGE_BYTES = 500 * 10**6
"""Maximum size of a file: many times the largest image, and far from filling a memory."""
_MAX_SHOWN = 200  # characters of a name that an error shows
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/", re.ASCII)  # of one letter it is a drive
_QUOTES = ("''", '""', "``", "‘’", "“”")
# How base64 of a PNG, a JPEG, a GIF, a WebP and a BMP begins.
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+=*\s*", re.ASCII)
_SHORTEST_BASE64 = 100  # characters; shorter ones may well be names of files


def read_named_image(name: str | Path) -> bytes:
    """Reads the file that a person named, or decodes a `data:` URI.

    Raises UserError when there is no such file, it cannot be read, or the name is an address.
    """
    inline = None if isinstance(name, Path) else _inline_bytes(name)
    return read_image_file(_find_file(str(name), Path())) if inline is None else inline


@dataclass(frozen=True)
class RefusedImage:
    """An image that a row names and that is not read."""

    name: str
    reason: str


LocatedImage = Path | str | RefusedImage
"""The path of an image, its name where that is the image itself, or why it is not read."""


def find_image(name: str, folder: Path, *, anywhere: bool = False) -> Path | str:
    """Finds the image that a row names: its path, or the name itself where that is the image.

    `folder` is where relative names begin. Without `anywhere` the image has to be in it: rows come
    from anybody, and could name any file of the person who reads them. Raises UserError when there
    is no such file, or several.
    """
    if _inline_bytes(name) is not None:
        return name
    return _find_file(name, folder, bound=None if anywhere else folder)


def locate_image(name: str, folder: Path, *, anywhere: bool = False) -> LocatedImage:
    """As `find_image`, but returns what was not found or is refused; opening it raises the error.

    Nothing is looked for outside of the folder, so that no error tells what is there.
    """
    try:
        return find_image(name, folder, anywhere=anywhere)
    except OutsideError as problem:
        return RefusedImage(name, str(problem))
    except UserError:
        return name if is_inline(name) or _SCHEME.match(name) else folder / name


class OutsideError(UserError):
    """A row names an image outside of the images' folder."""


def is_there(image: LocatedImage) -> bool:
    """Whether `locate_image` found it, readable or not."""
    if isinstance(image, RefusedImage):
        return True
    return is_inline(image) if isinstance(image, str) else _exists(image)


def image_name(name: str | Path) -> str:
    """The name as records and errors show it: one line, and never the data of an image."""
    text = str(name).strip()
    if _is_data_uri(text):
        media_type = re.match(r"[\w/.+-]{0,60}", text[len("data:") :])
        return f"data:{media_type.group() if media_type else ''}"
    if _looks_like_base64(text):
        return f"base64 of {len(text)} characters"
    if len(text) > _MAX_SHOWN:
        return f"{text[:60]}… ({len(text)} characters)"
    return text


def read_image_file(path: Path, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Reads the bytes of a file. Raises UserError when it cannot be read."""
    name = image_name(path)
    try:
        return read_file(path, max_bytes)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such picture") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, not a picture") from None
    except NotRegularError as problem:
        raise UserError(f"{name} is no picture: it is {problem.strerror}") from None
    except TooLargeError:
        raise UserError(
            f"{name} is no picture: it holds more than {max_bytes // 10**6} MB"
        ) from None
    except OSError as problem:
        raise UserError(f"{name} cannot be read: {problem.strerror}") from None
    except ValueError:  # a NUL in the name
        raise UserError(f"{quoted(name)}: no file can have this name") from None


def is_inline(name: str) -> bool:
    """Whether a name is the image itself: a `data:` URI, or the base64 of one."""
    name = name.strip()
    return _is_data_uri(name) or _looks_like_base64(name)


def _is_data_uri(name: str) -> bool:
    return name[:5].lower() == "data:"


def _looks_like_base64(name: str) -> bool:
    return (
        len(name) >= _SHORTEST_BASE64
        and name.startswith(_BASE64_STARTS)
        and _BASE64.fullmatch(name) is not None
    )


def _inline_bytes(name: str) -> bytes | None:
    """The image that stands in the name itself; None if the name names a file.

    Raises UserError, which shows none of the data.
    """
    text = name.strip().strip("'\"")
    if _is_data_uri(text):
        head, comma, body = text.partition(",")
        if not comma:
            raise UserError(f"{image_name(text)}: a data: URI has a comma before its data")
        data = unquote_to_bytes(body)
        if "base64" not in [part.strip().lower() for part in head.split(";")[1:]]:
            return data
        return _decoded(data, image_name(text))
    if _looks_like_base64(text) and not _exists(Path(text)):
        return _decoded(text.encode(), image_name(text))
    return None


def _decoded(data: bytes, name: str) -> bytes:
    data = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name}: its data is not whole base64; was it cut off?") from None


def _find_file(name: str, folder: Path, bound: Path | None = None) -> Path:
    """The file that a name means, within the folder `bound` if there is one.

    Raises UserError when there is none, or several, and OutsideError.
    """
    paths = list(_paths(name, folder))
    inside = [path for path in paths if bound is None or _is_inside(path, bound)]
    for path in inside:
        if _exists(path):
            return path
    bare = name.strip().strip("'\"")
    if (scheme := _SCHEME.match(bare)) and scheme[1].lower() != "file":
        raise UserError(_address(bare, scheme[1].lower()))
    if len(inside) < len(paths):
        raise OutsideError(
            f"{image_name(name)}: is not in the images' folder {bound}, or a link leads out of it; "
            "if you trust the rows, add --images-anywhere"
        )
    for path in paths:
        found = list(_alike(path))
        if len(found) == 1 and (bound is None or _is_inside(found[0], bound)):
            return found[0]
        if found:
            both = " and ".join(ascii(str(each)) for each in found)
            raise UserError(
                f"{image_name(folder / name)}: there is no such picture, and more than one that "
                f"looks the same: {both}; rename one of them"
            )
    url_path = _path_of_url(name.strip())
    shown = folder / (name if url_path is None else unquote(url_path))
    raise UserError(f"{image_name(shown)}: there is no such picture")


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, with all links followed, lies in a folder, whether or not it is there."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a NUL
        return False


def _paths(name: str, folder: Path) -> Iterator[Path]:
    """The paths that a name may mean, the most literal first."""
    seen = set()
    for spelling in _spellings(name):
        path = folder / spelling
        for each in (path, folder / path.expanduser()) if spelling[0] == "~" else (path,):
            if each not in seen:
                seen.add(each)
                yield each


def _spellings(name: str) -> Iterator[str]:
    """A name, and what a drag, a shell, a URL or Windows may have made it from."""
    forms = [name, name.strip()]
    for quotes in _QUOTES:
        text = forms[1]
        if len(text) > 2 and text[0] == quotes[0] and text[-1] == quotes[1]:
            forms.append(text[1:-1])
    for form in tuple(forms):
        if (path := _path_of_url(form)) is not None:
            forms += [path, unquote(path)]
    for form in tuple(forms):
        if "\\" in form:
            forms += [re.sub(r"\\(.)", r"\1", form), form.replace("\\", "/")]
    yield from (form for form in forms if form)


def _path_of_url(name: str) -> str | None:
    """The path of a `file:` URL, still with its escapes."""
    scheme = _SCHEME.match(name)
    if scheme is None or scheme[1].lower() != "file":
        return None
    rest = name[scheme.end() - 1 :]
    host = re.match(r"//(localhost)?(?=/)", rest)
    if host is not None:
        return rest[host.end() :]
    return rest.removeprefix("//") if rest.startswith("//") else rest  # file://relative/path


def _address(url: str, scheme: str) -> str:
    if scheme not in ("http", "https"):
        return f"{image_name(url)}: is an address; download the picture, and name the file"
    url = url.replace(":/", "://", 1) if "://" not in url else url
    shown = shlex.quote(url) if len(url) <= _MAX_SHOWN else "URL"
    return (
        f"{image_name(url)}: is an address, and nothing is downloaded; "
        f"curl -sL {shown} | llavacot ask - QUESTION, or save the picture and name the file"
    )


def _alike(path: Path) -> Iterator[Path]:
    """The files that differ from `path` only by kinds of space, invisible characters or Unicode
    form; in the folders' names as well."""
    if _exists(path):
        yield path
        return
    if path.parent == path:
        return
    wanted = _folded(path.name)
    for parent in _alike(path.parent):
        with contextlib.suppress(OSError, ValueError):
            yield from sorted(each for each in parent.iterdir() if _folded(each.name) == wanted)


def _folded(name: str) -> str:
    """A name with its spaces plain, without invisible characters, composed."""
    return unicodedata.normalize(
        "NFC",
        "".join(
            " " if unicodedata.category(character) == "Zs" else character
            for character in unicodedata.normalize("NFC", name)
            if unicodedata.category(character) != "Cf"
        ),
    )


def _exists(path: Path) -> bool:
    """Whether something is there; also where it may not be looked at."""
    try:
        return path.exists()
    except PermissionError:
        return True
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
