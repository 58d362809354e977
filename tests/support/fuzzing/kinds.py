"""The kinds of files that a person can hand over, each with a command that reads it."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from fuzzing import mutators
from fuzzing.mutators import Mutator
from PIL import Image
from random_adapter import write_adapter

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.peft import write_peft
from llavacot_mlx.trace.file import write_trace

QUESTION = "How many red circles are there?"
ROW = {
    "image": "picture.png",
    "conversations": [
        {"from": "human", "value": QUESTION},
        {
            "from": "gpt",
            "value": "<SUMMARY> I count. </SUMMARY><CAPTION> Two. </CAPTION>"
            "<REASONING> One and one. </REASONING><CONCLUSION> 2 </CONCLUSION>",
        },
    ],
}
PLAN = """\
method: mine
judge: self
temperature: 0.6
top_p: 0.9
steps:
  - {write: summary}
  - {write: caption, candidates: 2, keep: 1, temperature: 0.8, max_tokens: 3}
  - {write: answer, candidates: 2}
retrace: {after: caption, to: caption, most: 1, rank: 1, deviations: 0.25}
"""
LORA = """\
skip_bad: false
max_seq_length: 512
fine_tune_type: lora
num_layers: 2
lora_parameters: {rank: 4, scale: 2.0, dropout: 0.1, keys: [q_proj, v_proj]}
optimizer: adamw
optimizer_config: {adamw: {weight_decay: 0.01, betas: [0.9, 0.99]}}
learning_rate: 1e-5
lr_schedule: {name: cosine_decay, arguments: [1e-5, 10], warmup: 2}
max_grad_norm: 1.0
seed: 0
steps_per_report: 1
val_batches: 1
report_to: null
"""
RECIPE = """\
language_model.*.cross_attn.*: bfloat16
language_model.model.layers.-1.*: {bits: 8, group_size: 64}
language_model.*: {mode: affine, bits: 4}
"""
_ASK = ("ask", "picture.png", QUESTION, "--model", "model", "--max-tokens", "2", "--json")
_CONVERT = ("convert", "model", "--mlx-path", "out")
_TRAIN = ("--model", "model", "--data", "rows.jsonl", "--adapter-path", "out", "--iters", "1")
_FEW = ("--batch-size", "1", "--grad-accumulation-steps", "1", "--val-answers", "0")


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies on the desk, how it is changed, and what reads it."""

    file: str
    mutate: Mutator
    commands: tuple[tuple[str, ...], ...]
    reports: bool = False
    """Whether the command ends with 1 and a report on stdout for what it was made to find."""


KINDS: dict[str, Kind] = {
    "config": Kind("model/config.json", mutators.json_file, (_ASK, ("info", "model"))),
    "tokenizer": Kind("model/tokenizer.json", mutators.json_file, (_ASK,)),
    "generation": Kind("model/generation_config.json", mutators.json_file, (_ASK,)),
    "pictures' settings": Kind("model/preprocessor_config.json", mutators.json_file, (_ASK,)),
    "safetensors": Kind("model/model.safetensors", mutators.safetensors_file, (_ASK, _CONVERT)),
    "index": Kind("model/model.safetensors.index.json", mutators.json_file, (_ASK, _CONVERT)),
    "adapter": Kind(
        "adapter/adapter_config.json", mutators.json_file, ((*_ASK, "--adapter-path", "adapter"),)
    ),
    "adapter's weights": Kind(
        "adapter/adapters.safetensors",
        mutators.safetensors_file,
        ((*_ASK, "--adapter-path", "adapter"),),
    ),
    "PEFT": Kind(
        "peft/adapter_config.json",
        mutators.json_file,
        (("convert", "peft", "--model", "model", "--mlx-path", "out"),),
    ),
    "PEFT's weights": Kind(
        "peft/adapter_model.safetensors",
        mutators.safetensors_file,
        (("convert", "peft", "--model", "model", "--mlx-path", "out"),),
    ),
    "calibration": Kind(
        "model/calibration.json",
        mutators.json_file,
        ((*_ASK, "--search", "swires", "--candidates", "2"),),
    ),
    "trace": Kind(
        "trace.json",
        mutators.json_file,
        (
            ("trace", "trace.json", "--plain"),
            ("trace", "trace.json", "--html", "out.html"),
            ("trace", "trace.json", "--replay", "--model", "model"),
        ),
    ),
    "plan": Kind("plan.yaml", mutators.yaml_file, ((*_ASK, "--plan", "plan.yaml"),)),
    "lora": Kind(
        "lora.yaml", mutators.yaml_file, (("lora-train", "-c", "lora.yaml", *_TRAIN, *_FEW),)
    ),
    "recipe": Kind("recipe.yaml", mutators.yaml_file, ((*_CONVERT, "--recipe", "recipe.yaml"),)),
    "rows": Kind(
        "rows.jsonl",
        mutators.json_lines,
        (("data", "check", "rows.jsonl", "--model", "model"),),
        reports=True,
    ),
    "questions": Kind(
        "rows.jsonl",
        mutators.json_lines,
        (("calibrate", "rows.jsonl", "--model", "model", "--limit", "1", "--force"),),
    ),
    **{
        f"{name} picture": Kind(
            f"picture.{name}",
            mutators.picture_file,
            (("ask", f"picture.{name}", *_ASK[2:]),),
        )
        for name in ("png", "jpg", "gif", "webp", "tiff", "bmp", "avif")
    },
}


def lay_desk(desk: Path) -> None:
    """Puts a whole file of every kind on the desk, and what the commands need beside it."""
    desk.mkdir()
    shutil.copytree(demo.model_path(), desk / "model")
    shutil.copyfile(demo.example_path("tall"), desk / "picture.png")
    image = Image.open(desk / "picture.png").convert("RGB").resize((60, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(desk / "picture.jpg", exif=exif)
    frames = [image.rotate(angle) for angle in (90, 180)]
    for name in ("gif", "webp", "tiff"):
        image.save(desk / f"picture.{name}", save_all=True, append_images=frames)
    image.save(desk / "picture.bmp")
    image.save(desk / "picture.avif")
    write_adapter(desk / "adapter", desk / "model", name="model")
    output = OutputFolder(desk / "peft", "--save-path", False, "adapter_config.json")
    write_peft(desk / "adapter", output)
    _change(desk / "peft" / "adapter_config.json", _with_patterns)
    assistant = Assistant.load(desk / "model")
    picture = _small_png()
    found = assistant.ask(picture, QUESTION, search="swires", candidates=2, max_tokens=40)
    write_trace(desk / "trace.json", found, picture)
    (desk / "plan.yaml").write_text(PLAN)
    (desk / "lora.yaml").write_text(LORA)
    (desk / "recipe.yaml").write_text(RECIPE)
    (desk / "rows.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(3)))
    mx.clear_cache()


def _with_patterns(values: dict[str, object]) -> None:
    values |= {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {r"layers\.\d+\.mlp.*": 8}}


def _change(file: Path, change: Callable[[dict[str, object]], None]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def _small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(buffer, "PNG")
    return buffer.getvalue()


def changed(kind: Kind, whole: bytes, seed: int) -> tuple[bytes, tuple[str, ...]]:
    """A changed file and the command to read it with, both of which `seed` determines."""
    rng = random.Random(seed)
    return kind.mutate(whole, rng), rng.choice(kind.commands)
