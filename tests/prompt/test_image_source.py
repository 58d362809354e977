"""What a person writes for a picture, and the file that is meant."""

from __future__ import annotations

import base64
import io
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_source import find_image, image_name, is_there, locate_image
from llavacot_mlx.prompt.images import open_image


def png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 90).save(buffer, "PNG")
    return buffer.getvalue()


DATA = png()
BASE64 = base64.b64encode(DATA).decode()


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DATA)
    return path


SCREENSHOT = "Screenshot 2026-01-05 at 3.04.05\u202fPM.png"


@pytest.mark.parametrize(
    ("file", "given"),
    [
        (SCREENSHOT, SCREENSHOT),
        (SCREENSHOT, SCREENSHOT.replace("\u202f", " ")),
        (SCREENSHOT.replace("\u202f", " "), SCREENSHOT),
        ("a\u00a0b.png", "a b.png"),
        ("a\u3000b.png", "a\u2009b.png"),
        (unicodedata.normalize("NFD", "Übung é.png"), "Übung é.png"),
        ("Übung é.png", unicodedata.normalize("NFD", "Übung é.png")),
        (unicodedata.normalize("NFD", "Bücher\u202fx/ä.png"), "Bücher x/ä.png"),
        ("a.png", "a\u200b.png"),
        ("a.png", "\u200ea.png"),
        ("my pic.png", r"my\ pic.png"),
        ("my (1) pic.png", r"my\ \(1\)\ pic.png"),
        ("my pic.png", "'my pic.png'"),
        ("my pic.png", '"my pic.png" '),
        ("my pic.png", "“my pic.png”"),
        ("my pic.png", "my pic.png "),
        ("my pic.png", "my pic.png\n"),
        ("folder/a.png", r"folder\a.png"),
        (SCREENSHOT, SCREENSHOT.replace("\u202f", " ").replace(" ", "\\ ") + " "),
    ],
)
def test_a_name_finds_its_file(tmp_path: Path, file: str, given: str) -> None:
    """As a person typed it, dragged it, or as another system wrote it."""
    path = put(tmp_path / file)
    assert find_image(given, tmp_path) == path
    assert locate_image(given, tmp_path) == path
    assert open_image(str(tmp_path / "x")[:-1] + given if given[0] not in "'\"“" else path).size


def test_the_literal_name_comes_first(tmp_path: Path) -> None:
    for name in ("a b.png", "a\u00a0b.png", "'a b.png'", r"a\ b.png"):
        put(tmp_path / name)
    for name in ("a b.png", "a\u00a0b.png", "'a b.png'", r"a\ b.png"):
        assert find_image(name, tmp_path) == tmp_path / name


def test_two_files_that_look_the_same(tmp_path: Path) -> None:
    put(tmp_path / "a\u00a0b.png")
    put(tmp_path / "a\u202fb.png")
    with pytest.raises(UserError, match=r"more than one .*a\\xa0b\.png.* and .*a\\u202fb\.png"):
        find_image("a b.png", tmp_path)
    assert locate_image("a b.png", tmp_path) == tmp_path / "a b.png"


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "file://localhost{}", "FILE://{}"])
@pytest.mark.parametrize("name", ["a.png", "my pic.png", "50%20.png"])
def test_file_urls(tmp_path: Path, form: str, name: str) -> None:
    path = put(tmp_path / name)
    assert find_image(form.format(path), Path(), anywhere=True) == path
    if "%" not in name:
        url = form.format(str(path).replace(" ", "%20"))
        assert find_image(url, Path(), anywhere=True) == path
    assert open_image(form.format(path)).size == (40, 30)


def test_a_file_url_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/gone a\.png: there is no such picture"):
        open_image("file:///gone%20a.png")


@pytest.mark.parametrize(
    "given",
    [
        f"data:image/png;base64,{BASE64}",
        f"data:image/png;charset=x;base64,{BASE64.rstrip('=')}",
        f"  DATA:image/png;BASE64,{BASE64}\n",
        f"data:;base64,{base64.urlsafe_b64encode(DATA).decode()}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in DATA),
        f"data:image/png;base64,{BASE64}".replace("=", "%3D").replace("+", "%2B"),
        BASE64,
    ],
)
def test_a_picture_in_a_name(given: str, tmp_path: Path) -> None:
    assert open_image(given).size == (40, 30)
    found = find_image(given, tmp_path)
    assert found == given
    assert is_there(found)
    assert len(image_name(given)) < 60


@pytest.mark.parametrize(
    "given",
    [
        f"data:image/png;base64,{BASE64[:301]}!",
        f"data:image/png;base64,{'A' * 9000}",
        f"data:image/png;base64{BASE64}",
        f"data:{BASE64}",
        "data:image/png;base64,",
        BASE64[:201],
        "x" * 97_000,
        "/9j/" + "x" * 97_000,
        f"file:///{BASE64}",
        f"https://{BASE64}",
    ],
)
def test_no_error_shows_base64(given: str) -> None:
    """One line was 97 kB long."""
    with pytest.raises(UserError) as raised:
        open_image(given)
    assert len(str(raised.value)) < 400
    assert BASE64[60:100] not in str(raised.value)


@pytest.mark.parametrize("form", [str, Path])
def test_an_address_says_what_to_do(form: type) -> None:
    with pytest.raises(UserError, match=r"curl -sL 'https://a\.b/c\.png\?d&e' \| llavacot ask -"):
        open_image(form("https://a.b/c.png?d&e"))
    with pytest.raises(UserError, match="is an address; download the picture"):
        open_image(form("s3://bucket/a.png"))


def test_names_of_nothing(tmp_path: Path) -> None:
    for name in ("gone.png", "a/gone.png", "C:/gone.png", "a\\gone.png", "' '"):
        with pytest.raises(UserError, match="there is no such picture"):
            find_image(name, tmp_path)
        assert locate_image(name, tmp_path) == tmp_path / name
        assert not is_there(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "{}/secret.png", "link.png", "folder/secret.png"),
        *("file://{}/secret.png", "'../secret.png'", "..\\secret.png", "sub/../../secret.png"),
        *("../../nothing", "/nothing"),
    ],
)
def test_an_image_of_a_row_lies_in_the_folder(name: str, tmp_path: Path) -> None:
    """A row could name any file of the person who reads it, and the error told what is there."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    put(tmp_path / "secret.png")
    (folder / "link.png").symlink_to("../secret.png")
    (folder / "folder").symlink_to("..")
    name = name.format(tmp_path)
    with pytest.raises(UserError, match="--images-anywhere"):
        find_image(name, folder)
    refused = locate_image(name, folder)
    with pytest.raises(UserError, match=r"not in the images' folder .*; if you trust"):
        open_image(refused)
    if "nothing" not in name:
        assert find_image(name, folder, anywhere=True).samefile(tmp_path / "secret.png")


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    put(folder / "a.png")
    (folder / "b.png").symlink_to("a.png")
    (tmp_path / "here").symlink_to("images")  # the folder itself may be a link
    for base in (folder, tmp_path / "here"):
        for name in ("a.png", "b.png", "./a.png", f"{folder}/a.png"):
            assert Path(find_image(name, base)).samefile(folder / "a.png")
