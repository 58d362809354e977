"""Adapters on the command line: asked with, fused, exported, and brought back from PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from random_adapter import write_adapter
from typer.testing import CliRunner

from llavacot_mlx.checkpoint.adapters import read_adapter
from llavacot_mlx.checkpoint.safetensors import list_tensors
from llavacot_mlx.cli.main import app
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.search.calibration import ScoreStats, load_calibration


@pytest.fixture
def desk(tiny: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with `example.png`, the model `base` and `adapters` for it."""
    shutil.copytree(tiny, desk / "base")
    write_adapter(desk / "adapters", desk / "base")
    monkeypatch.chdir(desk)
    return desk


def llavacot(*arguments: str, note: str = "") -> str:
    """What the command prints; on stderr, `note` and nothing else."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.stderr
    assert done.stderr == note
    return done.stdout


def asked(*flags: str, note: str = "") -> dict[str, Any]:
    common = ("example.png", "What?", "--max-tokens", "8", "--json")
    return json.loads(llavacot("ask", *common, *flags, note=note))


def test_ask_with_an_adapter_takes_its_base(desk: Path) -> None:
    """`--model` may be left out; the object says what was used."""
    with_it = asked("--adapter-path", "adapters")
    assert (
        with_it["token_ids"] == asked("--adapter-path", "adapters", "--model", "base")["token_ids"]
    )
    without = asked("--model", "base")
    assert with_it["token_ids"] != without["token_ids"]
    assert (with_it["model"], with_it["adapter"]) == (str(desk / "base"), "adapters")
    assert (without["model"], without["adapter"]) == ("base", None)


def test_other_bits_of_the_base_are_said_on_stderr(quantizable: Path, desk: Path) -> None:
    convert(quantizable, desk / "q4", quantization=Quantization(32, 4))
    write_adapter(desk / "for-q4", desk / "q4", name="owner/q4")
    shutil.copytree(quantizable, desk / "full")
    note = (
        "note: for-q4 was trained on owner/q4; full is a version of the same checkpoint in other "
        "bits\n"
    )
    asked("--adapter-path", "for-q4", "--model", "full", note=note)
    llavacot("fuse", "--adapter-path", "for-q4", "--model", "full", note=note)


@pytest.mark.parametrize("flag", ["--repetition-stop", "--no-repetition-stop"])
def test_a_repetition_is_stopped_unless_it_may_go_on(
    flag: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cycle(*_: object) -> Iterator[int]:
        return iter([5, 6, 7] * 300)

    monkeypatch.setattr("llavacot_mlx.answer.decode", cycle)
    flags = ("--max-tokens", "900", "--json", flag)
    record = json.loads(llavacot("ask", "example.png", "What?", "-m", "base", *flags))
    stops = flag == "--repetition-stop"
    assert record["repetition_stop"] is stops
    assert record["finish"] == ("repetition" if stops else "length")
    assert len(record["token_ids"]) == (512 if stops else 900)


def test_a_trace_knows_its_adapter(desk: Path) -> None:
    """Shown, on the page, and when the answer is replayed."""
    common = ("ask", "example.png", "What?", "--max-tokens", "8", "--trace", "trace.json")
    llavacot(*common, "--adapter-path", "adapters")
    assert f"{desk / 'base'} with adapters" in llavacot("trace", "trace.json")
    assert "Adapter" in llavacot("trace", "trace.json", "--html", "-")
    said = llavacot("trace", "trace.json", "--replay")
    assert said == "the same answer, token for token (8 tokens)\n"


def test_fused_it_answers_as_with_the_adapter(desk: Path) -> None:
    said = llavacot("fuse", "--adapter-path", "adapters", "--save-path", "my model")
    assert said == (
        'wrote my model, 1.2 MB; now: llavacot ask photo.jpg "What is unusual here?" '
        "--model 'my model'\n"
    )
    fused, adapted = asked("--model", "my model"), asked("--adapter-path", "adapters")
    assert fused["token_ids"] == adapted["token_ids"]
    assert sorted(path.name for path in desk.iterdir()) == [
        *("adapters", "base", "demo", "example.png", "my model")
    ]


@pytest.mark.parametrize("flags", [(), ("--dequantize",)])
def test_a_change_that_the_rounding_swallows_is_warned_of(
    flags: tuple[str, ...], quantizable: Path, desk: Path
) -> None:
    convert(quantizable, desk / "q4", quantization=Quantization(32, 4))
    adapter = write_adapter(desk / "small", desk / "q4") / "adapters.safetensors"
    tensors = mx.load(str(adapter))
    assert isinstance(tensors, dict)
    mx.save_safetensors(
        str(adapter),
        {name: each * (0.02 if name.endswith("lora_b") else 1) for name, each in tensors.items()},
    )
    arguments = ["fuse", "--adapter-path", "small", "--model", "q4", "--save-path", "to", *flags]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    warned = "of what the adapter changes outlives the rounding" in done.stderr
    assert warned is not bool(flags)
    assert ("add --dequantize" in done.stderr) is warned


def test_force_replaces_what_was_fused_before(desk: Path) -> None:
    llavacot("fuse", "--adapter-path", "adapters")
    (desk / "fused_model" / "old.txt").write_text("from before")
    llavacot("fuse", "--force")  # the adapter's folder is called `adapters` by default
    assert not (desk / "fused_model" / "old.txt").exists()
    assert (desk / "fused_model" / "config.json").is_file()


def test_a_model_is_exported(desk: Path) -> None:
    assert llavacot("export", "base", "--dtype", "bfloat16") == (
        "wrote hf_model, 616 kB; now, in Python: "
        "MllamaForConditionalGeneration.from_pretrained('hf_model')\n"
    )
    tensors = list_tensors(desk / "hf_model")
    assert {entry.dtype for entry in tensors.values()} == {"BF16"}
    assert tensors.keys() == list_tensors(desk / "base").keys()


def test_an_adapter_is_merged_into_an_export(desk: Path) -> None:
    llavacot("export", "base", "--adapter-path", "adapters")
    adapted = asked("--adapter-path", "adapters")
    assert asked("--model", "hf_model")["token_ids"] == adapted["token_ids"]


@pytest.mark.parametrize("flags", [[], ["--model", "base"]])
def test_an_adapter_goes_to_peft_and_back(flags: list[str], desk: Path) -> None:
    """The base is the one that PEFT's folder names, unless another is given."""
    said = llavacot("export", "adapters", "--save-path", "peft")
    assert said == "wrote peft; now, in Python: PeftModel.from_pretrained(model, 'peft')\n"
    said = llavacot("convert", "peft", "--mlx-path", "back", *flags)
    assert said == (
        'wrote back; now: llavacot ask photo.jpg "What is unusual here?" --adapter-path back\n'
    )
    before, after = read_adapter(desk / "adapters"), read_adapter(desk / "back")
    assert after.config.base == before.config.base
    assert all(mx.array_equal(array, after.tensors[n]) for n, array in before.tensors.items())
    assert asked("--adapter-path", "back")["text"] == asked("--adapter-path", "adapters")["text"]


def test_a_calibration_is_kept_with_the_adapter(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's own stays as it is."""
    from llavacot_mlx.cli.commands import calibrate
    from llavacot_mlx.prompt.stages import Stage

    moments = {Stage.CAPTION: ScoreStats(0.5, 0.1, 40)}
    loaded = []

    def measured(rows: object, model: Any, *rest: object) -> dict[Stage, ScoreStats]:
        loaded.append((model.folder, model.adapter))
        return moments

    monkeypatch.setattr(calibrate, "_measure", measured)
    (desk / "rows.jsonl").write_text('{"image": "example.png", "question": "What?"}\n')
    written = Path("adapters") / "calibration.json"
    llavacot(
        "calibrate", "rows.jsonl", "--adapter-path", "adapters", note=f"written to {written}\n"
    )
    assert loaded == [(desk / "base", Path("adapters"))]
    assert load_calibration(desk / "adapters") == {"self": moments}
    assert load_calibration(desk / "base") == {}


@pytest.mark.parametrize("command", ["fuse", "export"])
def test_without_arguments_an_example_is_shown(command: str) -> None:
    shown = llavacot(command)
    assert f"llavacot {command} " in shown
    assert f"llavacot {command} --help" in shown
