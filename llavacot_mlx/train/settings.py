"""What a training is told: names and defaults are mlx-lm's where it has the same thing."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavacot_mlx.adapter_config import FineTuneType, LoRAParameters
from llavacot_mlx.errors import UserError

OPTIMIZERS = ("adamw", "adam", "muon", "sgd", "adafactor")
SCHEDULES = ("cosine_decay", "linear_schedule", "exponential_decay", "step_decay")


@dataclass(frozen=True)
class LRSchedule:
    """A learning rate over steps, one of MLX's, after a linear warm-up."""

    name: str
    arguments: tuple[float, ...]
    """MLX's: the first one is the learning rate that it starts from."""
    warmup: int = 0
    """Steps."""
    warmup_init: float = 0.0


@dataclass(frozen=True)
class TrainSettings:
    """All that decides what a training computes, and what it shows on the way.

    A step is one change of the weights: `grad_accumulation_steps` batches of `batch_size` rows.
    """

    data: str = ""
    """A JSONL file, or a folder with train.jsonl and perhaps valid.jsonl and test.jsonl."""
    images: str | None = None
    model: str | None = None
    adapter_path: str = "adapters"
    fine_tune_type: str = "lora"
    lora_parameters: LoRAParameters = field(default_factory=LoRAParameters)
    """Without keys, all linear layers of the text layers get a change."""
    num_layers: int = -1
    """Text layers that learn, from the last one; -1 for all."""
    train_vision: bool = False
    iters: int = 1000
    """Steps."""
    epochs: float | None = None
    """Instead of `iters`."""
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    optimizer: str = "adamw"
    optimizer_config: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By optimizer, what MLX's class of it takes: {"adamw": {"weight_decay": 0.01}}."""
    learning_rate: float = 1e-5
    lr_schedule: LRSchedule | None = None
    max_grad_norm: float = 0.0
    """Gradients longer than it are shortened to it; 0 leaves them."""
    max_seq_length: int = 2048
    grad_checkpoint: bool = False
    cache_features: int = 0
    """Bytes on disk for what the frozen vision tower makes of the pictures."""
    skip_bad: bool = False
    seed: int = 0
    dtype: str = "auto"
    steps_per_report: int = 10
    steps_per_eval: int = 200
    val_batches: int = 25
    """Of the validation rows, so many batches are looked at; -1 for all."""
    val_answers: int = 4
    """Validation questions that are answered as well."""
    save_every: int = 100
    report_to: str | None = None
    project_name: str | None = None


# What may differ between a training and its resumption: it changes no step that is computed.
FREE_ON_RESUME = frozenset(
    {
        "adapter_path", "iters", "epochs", "grad_checkpoint", "cache_features", "steps_per_report",
        "steps_per_eval", "val_batches", "val_answers", "save_every", "report_to", "project_name",
        "data", "images", "model",  # compared by content
    }
)  # fmt: skip


def read_settings(file: Path) -> dict[str, Any]:
    """What a YAML file of settings gives, by the names of TrainSettings.

    Raises UserError that names the file and the key for any mistake.
    """
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"{file}: {problem.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        said = " ".join(str(problem).split())
        raise UserError(f"{file}: not a YAML file: {said}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a line like `learning_rate: 1e-5` for each setting")
    return {str(key): value for key, value in values.items()}


def settings_from(values: dict[str, Any], where: str) -> TrainSettings:
    """Settings of parsed values, checked. `where` begins the error that names a wrong key."""
    settings = _built(TrainSettings, values, where)
    _check(settings)
    return settings


def settings_object(settings: TrainSettings) -> dict[str, Any]:
    """The settings as `settings_from` takes them, fit for YAML or JSON."""
    return _plain(dataclasses.asdict(settings))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _built(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys with values, not {values!r}")
    hints = typing.get_type_hints(kind)
    known = [entry.name for entry in dataclasses.fields(kind)]
    given = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"{where}: {key} is no setting{_meant(name, known)}")
        given[name] = _converted(hints[name], value, f"{where}: {key}")
    try:
        return kind(**given)
    except TypeError as problem:
        raise UserError(f"{where}: {problem}") from None


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _converted(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(kind):
        return _built(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_converted(arguments[0], inner, where) for inner in value)
    if origin is dict and isinstance(value, dict):
        return {
            _converted(arguments[0], key, where): _converted(arguments[1], inner, where)
            for key, inner in value.items()
        }
    if kind is Any:
        return value
    # YAML reads 1e-5 as a text, and 1 as a whole number where a fraction may stand.
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif kind is not float and origin is None and type(value) is kind:
        return value
    raise UserError(f"{where}: {value!r} is not {_KINDS.get(kind, 'as it should be')}")


_KINDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false"
}  # fmt: skip


def _check(settings: TrainSettings) -> None:
    lora = settings.lora_parameters
    positive = {
        "iters": settings.iters,
        "batch_size": settings.batch_size,
        "grad_accumulation_steps": settings.grad_accumulation_steps,
        "max_seq_length": settings.max_seq_length,
        "steps_per_report": settings.steps_per_report,
        "steps_per_eval": settings.steps_per_eval,
        "save_every": settings.save_every,
        "lora_parameters.rank": lora.rank,
        "learning_rate": settings.learning_rate,
        "lora_parameters.scale": lora.scale,
    }
    if settings.epochs is not None:
        positive["epochs"] = settings.epochs
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{_flag(name)} {value}: must be above 0")
    not_negative = {
        "max_grad_norm": settings.max_grad_norm,
        "cache_features": settings.cache_features,
        "val_answers": settings.val_answers,
    }
    for name, value in not_negative.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"{_flag(name)} {value}: must be 0 or more")
    for name, value in {
        "num_layers": settings.num_layers,
        "val_batches": settings.val_batches,
    }.items():
        if value < 1 and value != -1:
            raise UserError(f"{_flag(name)} {value}: must be 1 or more, or -1 for all")
    if not 0 <= lora.dropout < 1:
        raise UserError(f"lora_parameters.dropout {lora.dropout}: must be from 0 to below 1")
    _one_of("fine_tune_type", settings.fine_tune_type, tuple(FineTuneType))
    _one_of("optimizer", settings.optimizer, OPTIMIZERS)
    if settings.lr_schedule:
        _one_of("lr_schedule.name", settings.lr_schedule.name, SCHEDULES)
    if settings.cache_features and settings.train_vision:
        raise UserError(
            "--cache-features keeps what a frozen vision tower makes; --train-vision changes it"
        )


def _one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UserError(f"{_flag(name)} {value}: there are {', '.join(options)}")


def _flag(name: str) -> str:
    return name if "." in name else "--" + name.replace("_", "-")
