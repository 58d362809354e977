"""`llavacot lora-train` as a process: trained, killed, gone on with, refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml
from demo_rows import write_rows
from mlx.utils import tree_flatten
from terminal_session import TerminalSession

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.demo import model_path
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.train.checkpoint import FILE_NAME as CHECKPOINT

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-m", "llavacot_mlx", "lora-train"]
QUICK = ["--batch-size", "2", "--learning-rate", "1e-2", "--val-answers", "0", "--lora-rank", "2"]
SEEDS = range(5000, 5012)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the demo world; beside them `model`, a small random one with the demo's tokenizer."""
    file = write_rows(tmp_path_factory.mktemp("rows"), SEEDS)
    write_small_model(file.parent / "model")
    return file


def write_small_model(folder: Path) -> None:
    """The demo model in a tenth of its width, so that a step takes no time, with open gates."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(model_path() / name, folder / name)
    values = json.loads((model_path() / "config.json").read_text())
    values["text_config"] |= {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 3, "cross_attention_layers": [1],
    }  # fmt: skip
    values["vision_config"] |= {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_global_layers": 1, "num_attention_heads": 2, "intermediate_layers_indices": [1],
        "vision_output_dim": 32,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    model = Mllama(load_config(folder))
    key = mx.random.key(0)
    weights = {}
    for name, array in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        weights[name] = 0.2 * mx.random.normal(array.shape, key=own)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


def inputs(data: Path) -> list[str]:
    images, model = data.parent / "images", data.parent / "model"
    return ["--data", str(data), "--images", str(images), "--model", str(model)]


def train(data: Path, adapter: Path, *flags: str, ok: bool = True) -> subprocess.CompletedProcess:
    command = [*COMMAND, *inputs(data), "--adapter-path", str(adapter), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if ok:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def refused(data: Path, adapter: Path, *flags: str) -> str:
    """The one line on stderr after the notices of the demo model."""
    done = train(data, adapter, *flags, ok=False)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    *_, line = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def log(adapter: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]


def losses(adapter: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in log(adapter) if "loss" in row]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps with dropout, two batches each, into the second epoch."""
    adapter = tmp_path_factory.mktemp("undisturbed") / "adapter"
    train(data, adapter, *QUICK, *EIGHT)
    return adapter


EIGHT = [
    "--iters", "8", "--save-every", "2", "--lora-dropout", "0.1", "--grad-accumulation-steps", "2"
]  # fmt: skip


def test_a_training_leaves_what_it_promises(undisturbed: Path) -> None:
    rows = log(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, 9))
    for key in ("loss", "learned_tokens", "learning_rate", "grad_norm", "seconds"):
        assert all(row[key] > 0 for row in rows), key
    assert all(row["peak_memory_bytes"] > 10**6 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    names = {file.name for file in undisturbed.iterdir()}
    assert names == {
        "adapters.safetensors", "adapter_config.json", "log.jsonl", "curve.png", "lora.yaml",
        CHECKPOINT,
    }  # fmt: skip
    assert (undisturbed / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_yaml_file_repeats_the_training(undisturbed: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((undisturbed / "lora.yaml").read_text())
    assert values["lora_parameters"]["dropout"] == 0.1
    again = tmp_path / "again"
    flags = ["-c", str(undisturbed / "lora.yaml"), "--adapter-path", str(again), "--iters", "2"]
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(again) == losses(undisturbed)[:2]


LONG = [*EIGHT, "--iters", "24"]  # so long that a kill near step 7 does not come too late


@pytest.fixture(scope="module")
def long_undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = tmp_path_factory.mktemp("long_undisturbed") / "adapter"
    train(data, adapter, *QUICK, *LONG)
    return adapter


@pytest.mark.parametrize("seed", range(10))
def test_killed_and_resumed_it_learns_the_same_to_the_bit(
    data: Path, long_undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    adapter = tmp_path / "adapter"
    generator = random.Random(seed)
    command = [*COMMAND, *inputs(data), "--adapter-path", str(adapter)]
    process = subprocess.Popen([*command, *QUICK, *LONG], stdout=subprocess.DEVNULL)
    wanted, after = generator.randint(2, 7), generator.random()
    while len(losses(adapter)) < wanted if (adapter / "log.jsonl").exists() else True:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    time.sleep(after * log(adapter)[-1]["seconds"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    is_whole(adapter)
    train(data, adapter, *QUICK, *LONG, "--resume")
    assert losses(adapter) == losses(long_undisturbed)
    theirs = mx.load(str(long_undisturbed / "adapters.safetensors"))
    ours = mx.load(str(adapter / "adapters.safetensors"))
    assert set(ours) == set(theirs)
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)


def is_whole(adapter: Path) -> None:
    """There is a whole adapter, or none; and no file that is half written under its own name."""
    for name in ("adapters.safetensors", CHECKPOINT):
        if (adapter / name).exists():
            mx.eval(mx.load(str(adapter / name)))


def test_interrupted_it_ends_its_step_and_saves(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    flags = [*QUICK, *EIGHT, "--save-every", "100"]
    command = [*COMMAND, *inputs(data), "--adapter-path", str(adapter), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while len(losses(adapter)) < 3 if (adapter / "log.jsonl").exists() else True:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[0]
    assert process.returncode == 130
    assert "add --resume" in told
    done = len(losses(adapter))
    assert 3 <= done < 8
    train(data, adapter, *flags, "--resume")
    assert losses(adapter) == losses(undisturbed)


def test_two_processes_learn_what_one_does(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """MLX's ring on this machine; each process has its share of every batch."""
    adapter = tmp_path / "adapter"
    hosts = tmp_path / "hosts.json"
    first = 20_000 + os.getpid() % 20_000
    hosts.write_text(json.dumps([[f"127.0.0.1:{first}"], [f"127.0.0.1:{first + 1}"]]))
    plain = [flag if flag != "0.1" else "0" for flag in EIGHT]
    command = [*COMMAND, *inputs(data), *QUICK, *plain]
    alone = tmp_path / "alone"
    train(data, alone, *QUICK, *plain)
    processes = [
        subprocess.Popen(
            [*command, "--adapter-path", str(adapter)],
            env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert "step      8" not in told[1][0]  # the second one is silent
    for (step, loss, norm), (same, expected, expected_norm) in zip(
        losses(adapter), losses(alone), strict=True
    ):
        assert step == same
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


def test_a_training_is_not_written_over(data: Path, undisturbed: Path) -> None:
    assert "resume it with --resume" in refused(data, undisturbed, *QUICK)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning-rate", "2e-3"], "learning_rate was 0.01 and is 0.002"),
        (["--batch-size", "3"], "batch_size was 2 and is 3"),
        (["--lora-rank", "4"], "lora_parameters was"),
        (["--seed", "5"], "seed was 0 and is 5"),
    ],
)
def test_a_resumption_with_other_settings_says_what_changed(
    data: Path, undisturbed: Path, flags: list[str], said: str
) -> None:
    before = (undisturbed / CHECKPOINT).read_bytes()
    line = refused(data, undisturbed, *QUICK, *EIGHT, "--iters", "10", *flags, "--resume")
    assert said in line
    assert (undisturbed / CHECKPOINT).read_bytes() == before


def test_a_resumption_with_other_rows_says_so(undisturbed: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other", range(6000, 6012))
    write_small_model(other.parent / "model")
    line = refused(other, undisturbed, *QUICK, *EIGHT, "--iters", "10", "--resume")
    assert "data was" in line


def test_bad_rows_are_listed_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "train.jsonl"
    lines = data.read_text().splitlines()
    row = json.loads(lines[1])
    row["image"] = "nowhere.png"
    bad.write_text("\n".join([lines[0], json.dumps(row), "{", *lines[3:]]) + "\n")
    adapter = tmp_path / "adapter"
    command = [*COMMAND, *inputs(data), "--data", str(bad), "--adapter-path", str(adapter), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "row 2: picture missing" in done.stderr
    assert "row 3: broken JSON" in done.stderr
    assert "2 of 12 rows have problems" in done.stderr.splitlines()[-1]
    assert not adapter.exists()
    command += ["--skip-bad", "--iters", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 12 rows left out" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lora-rank", "100000"], "rank 100000"),
        (["--lora-keys", "q_project"], "'q_project'"),
        (["--num-layers", "99"], "99"),
        (["--fine-tune-type", "qlora"], "--fine-tune-type qlora: there are lora, dora, full"),
        (["--iters", "3", "--epochs", "1"], "--iters and --epochs"),
        (["--resume"], "start without --resume"),
        (["-c", "nowhere.yaml"], "nowhere.yaml is missing"),
        (["--cache-features", "much"], "--cache-features: 'much'"),
        (["--max-seq-length", "64"], "12 of 12 rows have problems"),
        (["--report-to", "paper"], "--report-to paper"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    data: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    adapter = tmp_path / "adapter"
    assert said in refused(data, adapter, *QUICK, *flags)
    assert not adapter.exists()


def test_a_loss_that_is_no_number_stops_it(data: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    flags = [*QUICK, "--iters", "60", "--save-every", "1", "--learning-rate", "1e30"]
    line = refused(data, adapter, *flags)
    assert "the last checkpoint is kept" in line
    assert "--learning-rate" in line
    is_whole(adapter)
    assert all(loss == loss for _, loss, _ in losses(adapter))


# MLX's CPU backend dies where the memory ends; Metal's raises this, in the words of its source.
_WITHOUT_MEMORY = """
from llavacot_mlx.cli.main import run
from llavacot_mlx.train.trainer import Training

whole = Training.run

def until_the_memory_ends(training):
    for event in whole(training):
        yield event
        if training.done == 3:
            raise RuntimeError("[metal::malloc] Unable to allocate 4096 bytes.")

Training.run = until_the_memory_ends
run()
"""


def test_the_rate_that_is_logged_is_the_one_of_its_step(data: Path, tmp_path: Path) -> None:
    adapter, config = tmp_path / "adapter", tmp_path / "lora.yaml"
    schedule = {"name": "linear_schedule", "arguments": [1e-3, 2e-3, 4]}
    config.write_text(yaml.safe_dump({"lr_schedule": schedule}))
    train(data, adapter, *QUICK, "-c", str(config), "--iters", "3")
    rates = [row["learning_rate"] for row in log(adapter)]
    assert rates == pytest.approx([1e-3, 1.25e-3, 1.5e-3])


def test_where_the_memory_ends_it_says_what_to_change(data: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    flags = [*inputs(data), "--adapter-path", str(adapter), *QUICK, "--save-every", "2"]
    command = [sys.executable, "-c", _WITHOUT_MEMORY, "lora-train", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    *_, line = done.stderr.strip().splitlines()
    assert line.startswith("error: step 4: out of memory; try --batch-size 1 with")
    assert "--grad-checkpoint" in line
    assert line.endswith("The last checkpoint is kept")
    is_whole(adapter)
    train(data, adapter, *QUICK, "--save-every", "2", "--iters", "4", "--resume")
    assert [row["step"] for row in log(adapter)] == [1, 2, 3, 4]


_SERVICE = """
import json, os

def init(**named):
    with open(os.environ["SERVICE_LOG"], "a") as stream:
        stream.write(json.dumps(["init", named["project"], named["config"]["seed"]]) + "\\n")

def log(row, step):
    with open(os.environ["SERVICE_LOG"], "a") as stream:
        stream.write(json.dumps([step, row]) + "\\n")
"""


def test_a_service_is_told_what_the_log_says(data: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(_SERVICE)
    told = tmp_path / "told.jsonl"
    adapter = tmp_path / "adapter"
    flags = ["--iters", "3", "--report-to", "wandb", "--project-name", "shapes", "--seed", "7"]
    command = [*COMMAND, *inputs(data), "--adapter-path", str(adapter), *QUICK, *flags]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SERVICE_LOG": str(told)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *rows = [json.loads(line) for line in told.read_text().splitlines()]
    assert first == ["init", "shapes", 7]
    assert rows == [[row["step"], {"iteration": row["step"], **row}] for row in log(adapter)]


@pytest.fixture(scope="module")
def splits(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows to learn from and two to validate on."""
    folder = tmp_path_factory.mktemp("splits")
    (folder / "images").symlink_to(data.parent / "images")
    lines = data.read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[2:]))
    (folder / "valid.jsonl").write_text("".join(lines[:2]))
    return folder


def validated(splits: Path, adapter: Path) -> list[str]:
    images = ["--images", str(splits / "images"), "--adapter-path", str(adapter)]
    often = ["--iters", "2", "--steps-per-eval", "2", "--steps-per-report", "1"]
    answers = ["--val-answers", "2", "--batch-size", "2", "--learning-rate", "1e-4"]
    return [*COMMAND, "--data", str(splits), *images, *often, *answers]


def test_a_validation_tells_each_stage_and_answers_questions(splits: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    done = subprocess.run(validated(splits, adapter), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in log(adapter) if "val_loss" in row]
    assert row["step"] == 2
    kinds = ("summary", "caption", "reasoning", "conclusion", "tags")
    losses = [row[f"val_loss_{kind}"] for kind in kinds]
    assert 0 < min(losses) < row["val_loss"] < max(losses)  # the mean over all their tokens
    assert all(0 <= row[f"val_accuracy_{kind}"] <= 1 for kind in kinds)
    assert row["val_accuracy_caption"] > 0.9  # the demo model knows these pictures
    assert (row["val_answers"], row["val_well_formed"]) == (2, 1.0)
    right = round(2 * row["val_right"])
    assert f"2 of 2 well-formed, {right} of 2 right" in done.stdout
    assert done.stdout.count("✓") == right
    assert "\x1b" not in done.stdout


def test_on_a_terminal_the_mask_is_coloured_and_a_bar_moves(splits: Path, tmp_path: Path) -> None:
    command = validated(splits, tmp_path / "adapter")
    with TerminalSession(command, width=100, height=50) as session:
        assert session.finish() == 0
        assert b"\x1b[36m" in session.output  # a summary in its colour
        assert "■ masked" in session.text
        assert b"training" in session.output  # the bar, gone at the end
        assert "step      2  loss" in session.text
        assert "--adapter-path" in session.text
