"""The settings of a training, each one a field: its name, type, default, help and valid range.

The flags of `llavacot lora-train`, the YAML file that it reads and writes, and `docs/lora.yaml` all
follow from these fields. Names and defaults are mlx-lm's where it has the same setting.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from llavacot_mlx.checked import KeyRules, brief, checked, named
from llavacot_mlx.checkpoint.adapter_config import FineTuneType
from llavacot_mlx.checkpoint.dtypes import FLOAT_NAMES
from llavacot_mlx.errors import UserError


@dataclass(frozen=True)
class Check:
    """A condition on one value, and what to say about a value that fails it."""

    holds: Callable[[Any], bool]
    requirement: str


POSITIVE = Check(lambda value: 0 < value < float("inf"), "must be above 0")
COUNT = Check(lambda value: 0 < value < 2**31, "must be above 0, and below 2^31")
STEPS = Check(lambda value: 0 <= value < 2**31, "must be 0 or more, and below 2^31")
FEW = Check(lambda value: 0 < value <= 10_000, "must be above 0, and at most 10000")
EPOCHS = Check(lambda value: 0 < value <= 1_000_000, "must be above 0, and at most 1000000")
SEED = Check(lambda value: 0 <= value < 2**63, "must be 0 or more, and below 2^63")
PATH = Check(lambda value: "\0" not in value, "no file can have this name")
NOT_NEGATIVE = Check(lambda value: 0 <= value < float("inf"), "must be 0 or more")
COUNT_OR_ALL = Check(lambda value: value >= 1 or value == -1, "must be 1 or more, or -1 for all")
RATE = Check(lambda value: 0 <= value < 1, "must be from 0 to below 1")


@dataclass(frozen=True)
class About:
    """The help, range and other properties of a setting; it annotates the field's type."""

    help: str
    """A sentence for `--help` and for the comment in a YAML file."""
    check: Check | None = None
    choices: tuple[str, ...] = ()
    """All values that it may have, where they are few."""
    default_text: str = ""
    """What the default means, if the value alone does not say so."""
    metavar: str | None = None
    in_bytes: bool = False
    """The flag takes a size such as 20GB; a YAML file takes a number of bytes."""
    yaml_only: bool = False
    """The setting has no flag."""
    flag_prefix: str = ""
    """For a group of settings: `lora` makes `--lora-rank` of the group's `rank`."""
    free_on_resume: bool = False
    """The setting may change when a training is resumed, because no step depends on it."""
    heading: str = ""
    """Title of the section of the YAML file that begins with this setting."""

    def refusal(self, value: Any) -> str:
        """Returns what is wrong with a value, or an empty string."""
        if self.choices and value not in self.choices:
            return f"there are {', '.join(self.choices)}"
        return "" if self.check is None or self.check.holds(value) else self.check.requirement


OPTIMIZERS = ("adamw", "adam", "muon", "sgd", "adafactor")
SCHEDULES = ("cosine_decay", "linear_schedule", "exponential_decay", "step_decay")


@dataclass(frozen=True)
class LRSchedule:
    """A learning rate schedule: one of MLX's, after a linear warm-up."""

    name: Annotated[str, About("The name of MLX's schedule.", choices=SCHEDULES)]
    arguments: tuple[float, ...]
    """The arguments of MLX's schedule; the first one is the initial learning rate."""
    warmup: Annotated[int, About("Length of the warm-up, in steps.", check=STEPS)] = 0
    warmup_init: float = 0.0
    """Learning rate at the first warm-up step."""


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of the text layers, by suffix."""


@dataclass(frozen=True)
class LoRASettings:
    """The settings of the low-rank adapters. Full fine-tuning uses none of them."""

    rank: Annotated[int, About("LoRA rank.", check=COUNT)] = 8
    scale: Annotated[float, About("LoRA scale (PEFT's alpha / rank).", check=POSITIVE)] = 20.0
    dropout: Annotated[float, About("LoRA dropout rate.", check=RATE)] = 0.0
    keys: Annotated[
        tuple[str, ...],
        About(
            "Linear layers to adapt, by the ends of their names, such as q_proj.",
            metavar="NAME,...",
            default_text="all linear layers of the text layers",
        ),
    ] = ()

    @property
    def adapted(self) -> tuple[str, ...]:
        """The linear layers to adapt, by the ends of their paths; `keys`, or all by default."""
        return self.keys or LINEARS


@dataclass(frozen=True)
class TrainSettings:
    """All settings of a training: what it computes, and what it reports and saves.

    A step is one update of the weights: `grad_accumulation_steps` batches of `batch_size` rows.
    """

    model: Annotated[
        str | None,
        About(
            "The model: a folder, or an id on the Hugging Face hub.",
            metavar="PATH|ID",
            default_text="the demo model",
            check=PATH,
            free_on_resume=True,  # a resumption compares the weights themselves
            heading="Model and data",
        ),
    ] = None
    data: Annotated[
        str,
        About(
            "Training data (required): a JSONL file, or a folder with train.jsonl.",
            metavar="FILE|DIR",
            check=PATH,
            free_on_resume=True,  # a resumption compares the content
        ),
    ] = ""
    images: Annotated[
        str | None,
        About(
            "The folder that image paths are relative to.",
            metavar="DIR",
            default_text="the folder of the data",
            check=PATH,
            free_on_resume=True,
        ),
    ] = None
    images_anywhere: Annotated[
        bool,
        About(
            "Accept images outside of that folder, by their paths or by links.",
            free_on_resume=True,
        ),
    ] = False
    adapter_path: Annotated[
        str,
        About(
            "The folder to write the adapter, checkpoints and log to.",
            check=PATH,
            metavar="DIR",
            free_on_resume=True,
        ),
    ] = "adapters"
    skip_bad: Annotated[bool, About("Skip rows with problems instead of stopping.")] = False
    max_seq_length: Annotated[
        int, About("Maximum length of a row in tokens; longer rows are problems.", check=COUNT)
    ] = 2048

    fine_tune_type: Annotated[
        str,
        About(
            "What to train: LoRA adapters, DoRA adapters or the full weights.",
            choices=tuple(FineTuneType),
            heading="What is trained",
        ),
    ] = "lora"
    num_layers: Annotated[
        int,
        About(
            "Train the last N text layers; -1 trains all.",
            check=COUNT_OR_ALL,
        ),
    ] = -1
    lora_parameters: Annotated[
        LoRASettings, About("The low-rank adapters.", flag_prefix="lora")
    ] = field(default_factory=LoRASettings)
    train_vision: Annotated[bool, About("Train the vision tower and the projector as well.")] = (
        False
    )

    iters: Annotated[
        int,
        About(
            "Number of training steps.",
            check=COUNT,
            free_on_resume=True,
            heading="Optimization",
        ),
    ] = 1000
    epochs: Annotated[
        float | None,
        About("Number of epochs (instead of --iters).", check=EPOCHS, free_on_resume=True),
    ] = None
    batch_size: Annotated[int, About("Rows per batch.", check=COUNT)] = 4
    grad_accumulation_steps: Annotated[int, About("Batches per training step.", check=FEW)] = 1
    optimizer: Annotated[str, About("The optimizer.", choices=OPTIMIZERS)] = "adamw"
    optimizer_config: Annotated[
        dict[str, dict[str, bool | int | float | tuple[float, ...] | None]],
        About(
            "Options of MLX's optimizers, such as {adamw: {weight_decay: 0.01}}.",
            yaml_only=True,
        ),
    ] = field(default_factory=dict)
    learning_rate: Annotated[float, About("Learning rate.", check=POSITIVE)] = 1e-5
    lr_schedule: Annotated[
        LRSchedule | None,
        About(
            "Learning rate schedule of MLX, such as "
            "{name: cosine_decay, arguments: [1e-5, 1000], warmup: 100}.",
            default_text="a constant learning rate",
            yaml_only=True,
        ),
    ] = None
    max_grad_norm: Annotated[
        float,
        About("Clip the gradient norm to this value; 0 turns clipping off.", check=NOT_NEGATIVE),
    ] = 0.0
    seed: Annotated[int, About("Random seed; the same seed gives the same result.", check=SEED)] = 0

    dtype: Annotated[
        str,
        About(
            "Floating-point type of the weights and activations.",
            choices=("auto", *FLOAT_NAMES),
            default_text="float32 on a CPU, 16 bits on a GPU",
            heading="Memory and speed",
        ),
    ] = "auto"
    grad_checkpoint: Annotated[
        bool,
        About(
            "Recompute layers in the backward pass, which saves memory.",
            free_on_resume=True,
        ),
    ] = False
    cache_features: Annotated[
        int,
        About(
            "Cache image features on disk, up to this size.",
            check=NOT_NEGATIVE,
            metavar="SIZE",
            in_bytes=True,
            default_text="no cache",
            free_on_resume=True,
        ),
    ] = 0

    steps_per_report: Annotated[
        int,
        About(
            "Steps between reports of the loss.",
            check=COUNT,
            free_on_resume=True,
            heading="Reports and checkpoints",
        ),
    ] = 10
    steps_per_eval: Annotated[
        int, About("Steps between validations.", check=COUNT, free_on_resume=True)
    ] = 200
    val_batches: Annotated[
        int, About("Batches per validation; -1 uses all.", check=COUNT_OR_ALL, free_on_resume=True)
    ] = 25
    val_answers: Annotated[
        int,
        About(
            "Validation questions to answer at each validation.",
            check=NOT_NEGATIVE,
            free_on_resume=True,
        ),
    ] = 4
    save_every: Annotated[
        int, About("Steps between checkpoints.", check=COUNT, free_on_resume=True)
    ] = 100
    report_to: Annotated[
        str | None,
        About(
            "Also send the log to this service, wandb or swanlab.",
            metavar="SERVICE",
            free_on_resume=True,
        ),
    ] = None
    project_name: Annotated[
        str | None, About("Project name at that service.", metavar="NAME", free_on_resume=True)
    ] = None


@dataclass(frozen=True)
class Setting:
    """One setting, as a flag or a line of YAML needs it."""

    path: tuple[str, ...]
    """The name, preceded by that of its group if it has one: ("lora_parameters", "rank")."""
    kind: Any
    """The type of its value; None is allowed besides where the default is None."""
    default: Any
    about: About
    flag: str
    """The flag, such as `--lora-rank`; empty if the setting has none."""

    @property
    def default_text(self) -> str:
        """The default as `--help` shows it; empty if there is nothing to show."""
        explained = self.about.default_text
        if self.default in (None, "", (), {}) or self.kind is bool:
            return explained
        value = str(self.default)
        if isinstance(self.default, float):
            value = f"{self.default:g}".replace("e-0", "e-")
        return f"{value} ({explained})" if explained else value


def settings_of(group: type = TrainSettings) -> Iterator[Setting]:
    """Yields all settings in order, with those of a group where the group is declared."""
    defaults = group()
    for entry, hint, about in _fields(group):
        assert about is not None
        kind = _without_none(hint)
        if about.flag_prefix:
            for inner in settings_of(kind):
                flag = flag_name(f"{about.flag_prefix}_{inner.path[0]}")
                yield dataclasses.replace(inner, path=(entry.name, *inner.path), flag=flag)
            continue
        flag = "" if about.yaml_only else flag_name(entry.name)
        yield Setting((entry.name,), kind, getattr(defaults, entry.name), about, flag)


def _fields(group: type) -> Iterator[tuple[dataclasses.Field[Any], Any, About | None]]:
    """The fields of a dataclass, each with its type and, where it has any, its annotation."""
    hints = typing.get_type_hints(group, include_extras=True)
    for entry in dataclasses.fields(group):
        hint = hints[entry.name]
        if typing.get_origin(hint) is Annotated:
            yield entry, hint.__origin__, hint.__metadata__[0]
        else:
            yield entry, hint, None


def _without_none(hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next(option for option in options if option is not type(None))


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


FREE_ON_RESUME = frozenset(
    setting.path[0] for setting in settings_of() if setting.about.free_on_resume
)
"""The settings that may differ between a training and its resumption."""


def settings_from(values: dict[str, Any], where: str) -> TrainSettings:
    """Builds settings from parsed YAML values or flags, by the names of TrainSettings.

    `where` begins the error that names a wrong key. Raises UserError for an unknown setting, a
    value of the wrong type, and a value out of range.
    """
    with named(where):
        settings = checked(TrainSettings, values, KeyRules(dashes=True, float_texts=True))
    _check(settings)
    if settings.cache_features and settings.train_vision:
        raise UserError(
            "--cache-features keeps what a frozen vision tower makes; --train-vision changes it"
        )
    return settings


def settings_object(settings: TrainSettings) -> dict[str, Any]:
    """The settings as plain values for YAML or JSON; `settings_from` takes them back."""
    return _plain(dataclasses.asdict(settings))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _check(group: Any, prefix: str = "") -> None:
    """Raises UserError for the first value that its field's check refuses."""
    for entry, _, about in _fields(type(group)):
        value = getattr(group, entry.name)
        if dataclasses.is_dataclass(value):
            _check(value, f"{entry.name}.")
        elif about and value is not None and (refusal := about.refusal(value)):
            name = f"{prefix}{entry.name}" if prefix else flag_name(entry.name)
            raise UserError(f"{name} {brief(value)}: {refusal}")
