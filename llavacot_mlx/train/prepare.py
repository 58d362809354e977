"""From settings to a training that is ready for its next step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from llavacot_mlx.adapter_config import AdapterConfig, Base, FineTuneType, LoRAParameters
from llavacot_mlx.answering import Loaded
from llavacot_mlx.atomic import write_file
from llavacot_mlx.config_json import load_config
from llavacot_mlx.device import memory_of_this_machine
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.pictures import TileCutter
from llavacot_mlx.tokenizer import Tokenizer
from llavacot_mlx.weights import load_model

from .adapt import LINEARS, AdapterSettings, adapt, trainable_count
from .check import Checked, CheckedRow, check_rows
from .checkpoint import FILE_NAME, differences, load_checkpoint
from .course import steps_of
from .dataset import Dataset, open_splits
from .encoding import encode
from .example import Example, example_of
from .features import FeatureCache
from .loader import Loader
from .loop import Training
from .memory import MemoryEstimate, advice, estimate
from .optimizer import optimizer_of
from .problem import Problem
from .rows import Question, Rows
from .sample import Sample
from .settings import FREE_ON_RESUME, TrainSettings, settings_object
from .settings_yaml import settings_yaml
from .validation import Validation
from .workers import Workers

SETTINGS_NAME = "lora.yaml"
_ANSWER_TOKENS = 1024  # of an answer in a validation


@dataclass(frozen=True)
class Prepared:
    """A training, and what a person wants to know before its first step."""

    training: Training
    settings: TrainSettings
    model_name: str
    rows: int
    validation_rows: int
    trainable: int
    parameters: int
    memory: MemoryEstimate
    example: Example
    notes: tuple[str, ...]


class BadRowsError(UserError):
    """Rows that cannot be learned from."""

    def __init__(self, file: Path, problems: list[Problem], rows: int) -> None:
        bad = len({problem.row for problem in problems})
        super().__init__(
            f"{file}: {bad} of {rows} rows have problems; mend them (llavacot data check lists "
            "all), or add --skip-bad to train on the rest"
        )
        self.problems = problems


@dataclass(frozen=True)
class _Part:
    """The rows of a file that can be learned from."""

    dataset: Dataset
    rows: Sequence[int]
    lengths: Sequence[int]
    notes: tuple[str, ...]

    def rows_for(self, source: Source, features: FeatureCache | None) -> Rows:
        loader = Loader(self.dataset, source.tokenizer, source.cutter)
        return Rows(loader, self.rows, self.lengths, features)


@dataclass(frozen=True)
class Source:
    """A model folder with what its rows are read by."""

    name: str
    """What the person called it."""
    folder: Path
    tokenizer: Tokenizer
    cutter: TileCutter

    @classmethod
    def of(cls, name: str, folder: Path) -> Source:
        config = load_config(folder)
        return cls(
            name, folder, Tokenizer.load(folder, config), TileCutter.load(folder, config.vision)
        )


def prepare(
    settings: TrainSettings,
    source: Source,
    workers: Workers,
    *,
    resume: bool,
    watched: Callable[[str, Dataset, Iterator[CheckedRow]], Iterable[CheckedRow]],
) -> Prepared:
    """Checks everything that can be wrong, and loads the model.

    `watched` is given the rows of each file while they are looked at, to show how far that is.

    Raises UserError for whatever is wrong with the settings, the data, the model or the folder to
    write to, BadRowsError for rows that cannot be learned from, before anything is written.
    """
    folder = Path(settings.adapter_path)
    checkpoint = load_checkpoint(folder) if resume else None
    if checkpoint is None and (folder / FILE_NAME).exists():
        raise UserError(
            f"--adapter-path {folder} holds a training already: go on with --resume, or name "
            "another folder"
        )
    images = None if settings.images is None else Path(settings.images)
    splits = open_splits(Path(settings.data), images)
    optimizer = optimizer_of(settings)
    base = Base.of(source.name, source.folder)
    origin = _origin(settings, base, splits.train)
    if checkpoint is not None and (changed := differences(checkpoint.origin, origin)):
        raise UserError(
            f"--resume: {folder} was begun otherwise: {'; '.join(changed)}. Undo that, or start "
            "in another --adapter-path"
        )

    train = _part(splits.train, source, settings, watched)
    valid = _part(splits.valid, source, settings, watched) if splits.valid else None
    if len(train.rows) < workers.size:
        raise UserError(
            f"{splits.train.file}: {len(train.rows)} rows are too few for {workers.size} processes"
        )

    model = load_model(source.folder, settings.dtype)
    adapt(model, _adapter_settings(settings), settings.seed)
    model.train()
    features = _features(settings, base, folder, model)
    training = Training(
        model=model,
        optimizer=optimizer,
        settings=settings,
        steps=steps_of(train.lengths, settings),
        rows=train.rows_for(source, features),
        validation=_validation(valid, source, settings, features, model) if valid else None,
        adapter=_adapter_config(settings, base),
        origin=origin,
        workers=workers,
    )
    optimizer.init(model.trainable_parameters())
    if checkpoint is not None:
        training.resume(checkpoint)
    if training.done >= training.steps:
        raise UserError(
            f"{folder} is at step {training.done} of {training.steps} already: raise --iters or "
            "--epochs to go on"
        )
    memory = estimate(model, settings, max(train.lengths))
    notes = [*train.notes, *(valid.notes if valid else ())]
    if memory.total > memory_of_this_machine()[0]:
        notes.append(f"this may not fit this machine's memory; try {advice(settings)}")
    return Prepared(
        training=training,
        settings=settings,
        model_name=source.name,
        rows=len(train.rows),
        validation_rows=len(valid.rows) if valid else 0,
        trainable=trainable_count(model),
        parameters=_count(model.parameters()),
        memory=memory,
        example=example_of(_sample(train.dataset, train.rows[0], source), source.tokenizer),
        notes=tuple(notes),
    )


def write_settings(settings: TrainSettings) -> Path:
    """Writes the YAML file that repeats a training into its folder, and returns its place."""
    folder = Path(settings.adapter_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--adapter-path {folder}: {problem.strerror}") from None
    file = folder / SETTINGS_NAME
    write_file(file, f"# llavacot lora-train -c {file}\n{settings_yaml(settings)}".encode())
    return file


def _origin(settings: TrainSettings, base: Base, train: Dataset) -> dict[str, Any]:
    """What a step depends on: the rows, the model and the settings, for a resumption to compare."""
    decisive = {k: v for k, v in settings_object(settings).items() if k not in FREE_ON_RESUME}
    return {"data": train.digest, "model": base.hash, **decisive}


def _part(
    dataset: Dataset,
    source: Source,
    settings: TrainSettings,
    watched: Callable[[str, Dataset, Iterator[CheckedRow]], Iterable[CheckedRow]],
) -> _Part:
    rows = check_rows(dataset, source.tokenizer, source.cutter, settings.max_seq_length)
    checked = Checked.of(watched(f"checking {dataset.file.name}", dataset, rows))
    bad = len(dataset) - len(checked.rows)
    if bad and not settings.skip_bad:
        raise BadRowsError(dataset.file, list(checked.problems), len(dataset))
    if not checked.rows:
        raise UserError(f"{dataset.file}: no row of {len(dataset)} is without problems")
    notes = (f"{dataset.file}: {bad} of {len(dataset)} rows left out",) if bad else ()
    return _Part(dataset, checked.rows, checked.lengths, notes)


def _adapter_settings(settings: TrainSettings) -> AdapterSettings:
    lora = settings.lora_parameters
    return AdapterSettings(
        fine_tune_type=settings.fine_tune_type,  # type: ignore[arg-type] # was checked
        rank=lora.rank,
        scale=lora.scale,
        dropout=lora.dropout,
        num_layers=settings.num_layers,
        keys=lora.keys or LINEARS,
        train_vision=settings.train_vision,
    )


def _features(
    settings: TrainSettings, base: Base, folder: Path, model: Mllama
) -> FeatureCache | None:
    if not settings.cache_features:
        return None
    dtype = model.multi_modal_projector.weight.dtype
    return FeatureCache(folder / "features", settings.cache_features, f"{base.hash} {dtype}")


def _adapter_config(settings: TrainSettings, base: Base) -> AdapterConfig:
    lora = settings.lora_parameters
    full = settings.fine_tune_type == FineTuneType.FULL
    return AdapterConfig(
        FineTuneType(settings.fine_tune_type),
        settings.num_layers,
        None if full else LoRAParameters(lora.rank, lora.scale, lora.dropout, lora.keys or LINEARS),
        base,
    )


def _validation(
    part: _Part,
    source: Source,
    settings: TrainSettings,
    features: FeatureCache | None,
    model: Mllama,
) -> Validation:
    rows = part.rows_for(source, features)
    count = rows.batches_an_epoch(settings)
    return Validation(
        rows=rows,
        batches=count if settings.val_batches == -1 else min(count, settings.val_batches),
        questions=[_question(part.dataset, row) for row in part.rows[: settings.val_answers]],
        loaded=Loaded(model, source.tokenizer, source.cutter, {}, source.name, None, 0.0),
        max_tokens=_ANSWER_TOKENS,
    )


def _question(dataset: Dataset, row: int) -> Question:
    conversation = dataset.conversation(row)
    asked = next(turn.text for turn in conversation.turns if turn.role == "user")
    image = None if conversation.image is None else dataset.images / conversation.image
    return Question(conversation.where, image, asked, conversation.answers[0])


def _sample(dataset: Dataset, row: int, source: Source) -> Sample:
    return encode(dataset.conversation(row), source.tokenizer, dataset.images)


def _count(tree: Any) -> int:
    return sum(array.size for _, array in tree_flatten(tree))
