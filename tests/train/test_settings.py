"""Settings of a training: from YAML and flags, with the mistakes named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llavacot_mlx.errors import UserError
from llavacot_mlx.train.settings import (
    FREE_ON_RESUME,
    LoRASettings,
    LRSchedule,
    TrainSettings,
    settings_from,
    settings_object,
    settings_of,
)
from llavacot_mlx.train.settings_yaml import read_settings, settings_yaml

EXAMPLE = Path(__file__).parents[2] / "docs" / "lora.yaml"


def test_what_is_written_is_read_as_the_same() -> None:
    settings = TrainSettings(
        data="d",
        lora_parameters=LoRASettings(4, 2.0, 0.1, ("q_proj",)),
        lr_schedule=LRSchedule("cosine_decay", (1e-4, 100.0), warmup=5),
        optimizer_config={"adamw": {"weight_decay": 0.0}},
        epochs=1.5,
    )
    assert settings_from(yaml.safe_load(settings_yaml(settings)), "x") == settings


@pytest.mark.parametrize(
    "data", ["a # b", "a: b", "- a", "null", "two\nlines", "ä " * 99, '"', "1e5"]
)
def test_any_path_survives_being_written_beside_a_comment(data: str) -> None:
    settings = TrainSettings(data=data)
    assert settings_from(yaml.safe_load(settings_yaml(settings)), "x") == settings


def test_yaml_reads_1e_5_as_a_text_and_we_as_a_number() -> None:
    values = yaml.safe_load("learning_rate: 1e-5\nlora_parameters: {scale: 2}")
    settings = settings_from(values, "x")
    assert settings.learning_rate == 1e-5
    assert settings.lora_parameters.scale == 2.0


def test_the_example_in_the_documentation_is_what_the_settings_say() -> None:
    """Names, defaults and comments; `settings_yaml` writes it after the note on top."""
    note, _, rest = EXAMPLE.read_text().partition("\n\n")
    assert all(line.startswith("# ") for line in note.splitlines())
    assert rest == settings_yaml(TrainSettings(data="train.jsonl"))
    assert settings_from(read_settings(EXAMPLE), str(EXAMPLE)).data == "train.jsonl"


def test_every_setting_has_a_flag_or_says_that_it_has_none() -> None:
    settings = list(settings_of())
    flags = [setting.flag for setting in settings if setting.flag]
    assert len(set(flags)) == len(flags)
    assert {setting.path[0] for setting in settings} == set(settings_object(TrainSettings()))
    without = {setting.path for setting in settings if not setting.flag}
    assert without == {("optimizer_config",), ("lr_schedule",)}
    for setting in settings:
        assert setting.about.help.endswith((".", ")")), setting.path
        assert setting.default_text or setting.kind is bool or setting.default in (None, "", {})


@pytest.mark.processes
def test_the_settings_load_nothing_heavy() -> None:
    program = (
        "import sys, llavacot_mlx.train.settings\n"
        "print({'mlx', 'numpy', 'yaml', 'typer', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_every_setting_free_on_resume_is_a_setting() -> None:
    """Resuming with another learning rate or other rows would train something else."""
    assert {"iters", "adapter_path"} <= FREE_ON_RESUME <= set(settings_object(TrainSettings()))
    assert not {"learning_rate", "batch_size", "seed", "lora_parameters"} & FREE_ON_RESUME


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat: 1", "lora.yaml: learning_rat: unknown key; did you mean learning_rate?"),
        ("iters: many", 'iters: expected a whole number, not "many"'),
        ("iters: 0", "--iters 0: must be above 0"),
        ("batch_size: 1.5", "batch_size: expected a whole number, not 1.5"),
        ("learning_rate: .nan", "learning_rate: expected a number, not NaN"),
        ("skip_bad: 1", "skip_bad: expected true or false, not 1"),
        ("lora_parameters: {alpha: 16}", "lora_parameters.alpha: unknown key"),
        ("lora_parameters: {rank: 0}", "lora_parameters.rank 0: must be above 0"),
        ("lora_parameters: {dropout: 1}", "dropout 1.0: must be from 0 to below 1"),
        ("lora_parameters: 8", "expected an object with keys such as rank, scale"),
        ("fine_tune_type: qlora", "--fine-tune-type qlora: there are lora, dora, full"),
        ("optimizer: lion", "--optimizer lion: there are adamw"),
        ("dtype: float8", "--dtype float8: there are auto, float32, float16, bfloat16"),
        ("max_grad_norm: -1", "--max-grad-norm -1.0: must be 0 or more"),
        ("epochs: 0", "--epochs 0.0: must be above 0"),
        ("num_layers: 0", "--num-layers 0: must be 1 or more, or -1 for all"),
        ("lr_schedule: {name: wave, arguments: [1]}", "lr_schedule.name wave: there are"),
        ("lr_schedule: {name: cosine_decay}", "lr_schedule.arguments is missing"),
        ("{train_vision: true, cache_features: 1}", "--train-vision changes it"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_from(yaml.safe_load(text), "lora.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "just words", "- 1"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lora.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"lora\.yaml"):
        read_settings(file)
