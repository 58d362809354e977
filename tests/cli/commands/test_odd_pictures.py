"""What `llavacot ask` says of a picture that is odd, with the demo model itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llavacot_mlx import demo
from llavacot_mlx.cli.main import app
from llavacot_mlx.demo.drawing import draw
from llavacot_mlx.demo.scenes import TEST, scene

WARNING = "note: no --model given, so the demo model answered"


def ask(image: object, *flags: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["ask", str(image), "How many shapes?", *flags])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.effect_noise((200, 150), 60).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("search", [(), ("--search", "best-of-n", "--judge", "logprob")])
def test_a_photo_for_the_demo_model_is_warned_of(photo: Path, search: tuple[str, ...]) -> None:
    """A confident wrong answer, and the only hint at its top was scrolled away."""
    shown, _ = ask(photo, "--plain", "--max-tokens", "20", *search)
    assert shown.count(WARNING) == 1
    assert shown.index("SUMMARY") < shown.index(WARNING)
    assert shown.rindex("\n\n", 0, shown.index("load ")) > shown.index(WARNING)


def test_the_warning_is_in_the_object_and_beside_the_answer_alone(photo: Path) -> None:
    record = json.loads(ask(photo, "--json", "--max-tokens", "20")[0])
    assert [f"note: {notice}"[: len(WARNING)] for notice in record["search"]["notices"]] == [
        WARNING
    ]
    for flags in (("--answer-only",), ("--show", "answer"), ("--show", "stages")):
        shown, said = ask(photo, "--plain", *flags)
        assert WARNING not in shown
        assert said.count(WARNING) == 1


def test_no_warning_of_the_worlds_pictures_or_with_a_model(photo: Path, tmp_path: Path) -> None:
    draw(scene(TEST.seed(0))).save(tmp_path / "drawn.png")
    for image in (tmp_path / "drawn.png", demo.example_path()):
        assert "note:" not in "".join(ask(image, "--plain", "--max-tokens", "3"))
    shown = ask(photo, "--plain", "--max-tokens", "3", "--model", str(demo.model_path()))
    assert "note:" not in "".join(shown)


def test_a_trace_with_notes_opens(photo: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    ask(photo, "--trace", str(trace), "--max-tokens", "20")
    done = CliRunner().invoke(app, ["trace", str(trace), "--plain"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count(WARNING) == 1


def test_a_data_uri_is_in_no_record(tmp_path: Path) -> None:
    """One line of 97 kB, and the whole base64 in the trace."""
    data = base64.b64encode(demo.example_path().read_bytes()).decode()
    trace = tmp_path / "trace.json"
    shown, _ = ask(
        f"data:image/png;base64,{data}", "--json", "--max-tokens", "3", "--trace", str(trace)
    )
    assert json.loads(shown)["image"] == "data:image/png"
    assert data[:80] not in shown


def test_light_on_transparent_is_noted(tmp_path: Path) -> None:
    image = Image.new("RGBA", (128, 128))
    image.paste((250, 250, 250, 255), (30, 30, 60, 60))
    image.save(tmp_path / "light.png")
    model = ("--model", str(demo.model_path()))
    shown, _ = ask(tmp_path / "light.png", "--plain", "--max-tokens", "3", *model)
    assert "note: the picture is transparent and white would hide parts of it: laid on black" in (
        shown
    )


def test_an_address_is_one_line(tmp_path: Path) -> None:
    _, said = ask("https://example.com/a.jpg", code=1)
    (line,) = said.splitlines()
    assert line.startswith("error: https://example.com/a.jpg: is an address")
    assert "curl -sL https://example.com/a.jpg | llavacot ask -" in line
