"""Sets up a training: checks its inputs, loads the model, and assembles the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from llavacot_mlx.answer import LoadedModel
from llavacot_mlx.atomic import write_file
from llavacot_mlx.checkpoint.adapter_config import AdapterConfig, Base, FineTuneType, LoRAParameters
from llavacot_mlx.checkpoint.completeness import check_complete
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.device import available_memory
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.rows.problem import Problem
from llavacot_mlx.train.checkpoint import FILE_NAME, Checkpoint, differences, load_checkpoint
from llavacot_mlx.train.data.batches import steps_of
from llavacot_mlx.train.data.checks import Checked, CheckedRow, LostFolder, check_rows
from llavacot_mlx.train.data.dataset import Dataset, open_splits
from llavacot_mlx.train.data.loader import Loader
from llavacot_mlx.train.data.sample import Sample
from llavacot_mlx.train.distributed import Workers
from llavacot_mlx.train.lora_setup import apply_lora, trainable_count
from llavacot_mlx.train.loss.feature_cache import FeatureCache
from llavacot_mlx.train.loss.inputs_loader import InputsLoader
from llavacot_mlx.train.memory import MemoryEstimate, advice, estimate
from llavacot_mlx.train.optimizer import optimizer_of
from llavacot_mlx.train.preview import Example, example_of
from llavacot_mlx.train.settings import FREE_ON_RESUME, TrainSettings, settings_object
from llavacot_mlx.train.settings_yaml import settings_yaml
from llavacot_mlx.train.trainer import Training
from llavacot_mlx.train.validation import Validation, ValidationQuestion

SETTINGS_NAME = "lora.yaml"
_ANSWER_TOKENS = 1024  # of an answer in a validation


@dataclass(frozen=True)
class PreparedRun:
    """A training that is ready for its next step, and what to show before that step."""

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
    """Rows that cannot be trained on."""

    def __init__(
        self, file: Path, problems: list[Problem], rows: int, lost: tuple[LostFolder, ...]
    ) -> None:
        bad = len({problem.row for problem in problems})
        super().__init__(
            f"{file}: {bad} of {rows} rows have problems; mend them (llavacot data check lists "
            "all), or add --skip-bad to train on the rest"
        )
        self.problems = problems
        self.lost_folders = lost


@dataclass(frozen=True)
class TrainingBase:
    """The model folder that a training starts from, and what its rows are read with."""

    name: str
    """The model's name as the person gave it."""
    folder: Path
    tokenizer: Tokenizer
    image_processor: ImageProcessor

    @classmethod
    def of(cls, name: str, folder: Path) -> TrainingBase:
        check_complete(folder)
        config = load_config(folder)
        return cls(
            name, folder, Tokenizer.load(folder, config), ImageProcessor.load(folder, config.vision)
        )

    def sample(self, dataset: Dataset, row: int) -> Sample:
        return dataset.sample(row, self.tokenizer)


Progress = Callable[[str, Dataset, Iterator[CheckedRow]], Iterable[CheckedRow]]
"""Passes on the rows of a dataset, and shows how many of them have been checked."""


@dataclass(frozen=True)
class _Split:
    """The rows of a file that can be trained on."""

    dataset: Dataset
    rows: Sequence[int]
    lengths: Sequence[int]
    notes: tuple[str, ...]

    def inputs_for(self, base: TrainingBase, features: FeatureCache | None) -> InputsLoader:
        loader = Loader(self.dataset, base.tokenizer, base.image_processor)
        return InputsLoader(loader, self.rows, self.lengths, features)


@dataclass(frozen=True)
class _CheckedInputs:
    """What a training needs besides the model, all of it checked."""

    checkpoint: Checkpoint | None
    """Where to resume from."""
    optimizer: Any
    adapter_base: Base
    origin: dict[str, Any]
    train: _Split
    valid: _Split | None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.train.notes + (self.valid.notes if self.valid else ())


def prepare(
    settings: TrainSettings,
    base: TrainingBase,
    workers: Workers,
    *,
    resume: bool,
    progress: Progress,
) -> PreparedRun:
    """Checks everything that can be wrong, loads the model and assembles the training.

    Nothing is written. Raises UserError for whatever is wrong with the settings, the data, the
    model or the folder to write to, and BadRowsError for rows that cannot be trained on.
    """
    inputs = _check_inputs(settings, base, workers, resume=resume, progress=progress)
    model = _load_model(settings, base)
    training = _assemble(settings, base, workers, inputs, model)
    memory = estimate(model, settings, max(inputs.train.lengths))
    notes = inputs.notes
    if memory.total > available_memory()[0]:
        notes += (f"this may not fit this machine's memory; try {advice(settings)}",)
    first = base.sample(inputs.train.dataset, inputs.train.rows[0])
    return PreparedRun(
        training=training,
        settings=settings,
        model_name=base.name,
        rows=len(inputs.train.rows),
        validation_rows=len(inputs.valid.rows) if inputs.valid else 0,
        trainable=trainable_count(model),
        parameters=_count(model.parameters()),
        memory=memory,
        example=example_of(first, base.tokenizer),
        notes=notes,
    )


def _check_inputs(
    settings: TrainSettings,
    base: TrainingBase,
    workers: Workers,
    *,
    resume: bool,
    progress: Progress,
) -> _CheckedInputs:
    """Checks the folder to write to, the settings and every row, before the model is loaded."""
    folder = Path(settings.adapter_path)
    checkpoint = load_checkpoint(folder) if resume else None
    if checkpoint is None and (folder / FILE_NAME).exists():
        raise UserError(
            f"--adapter-path {folder} holds a training already: resume it with --resume, or name "
            "another folder"
        )
    images = None if settings.images is None else Path(settings.images)
    splits = open_splits(Path(settings.data), images, images_anywhere=settings.images_anywhere)
    optimizer = optimizer_of(settings)
    adapter_base = Base.of(base.name, base.folder)
    origin = _origin(settings, adapter_base, splits.train)
    if checkpoint is not None and (changed := differences(checkpoint.origin, origin)):
        raise UserError(
            f"--resume: {folder} was begun otherwise: {'; '.join(changed)}. Undo that, or start "
            "in another --adapter-path"
        )
    train = _check_split(splits.train, base, settings, progress)
    valid = _check_split(splits.valid, base, settings, progress) if splits.valid else None
    if len(train.rows) < workers.size:
        raise UserError(
            f"{splits.train.file}: {len(train.rows)} rows are too few for {workers.size} processes"
        )
    return _CheckedInputs(checkpoint, optimizer, adapter_base, origin, train, valid)


def _load_model(settings: TrainSettings, base: TrainingBase) -> Mllama:
    """Loads the model and selects the weights to train."""
    model = load_model(base.folder, settings.dtype)
    apply_lora(model, settings)
    model.train()
    return model


def _assemble(
    settings: TrainSettings,
    base: TrainingBase,
    workers: Workers,
    inputs: _CheckedInputs,
    model: Mllama,
) -> Training:
    """Puts the training together, and restores the checkpoint that it resumes from."""
    train, optimizer = inputs.train, inputs.optimizer
    features = _features(settings, inputs.adapter_base, model)
    training = Training(
        model=model,
        optimizer=optimizer,
        settings=settings,
        steps=steps_of(train.lengths, settings),
        inputs=train.inputs_for(base, features),
        validation=_validation(inputs.valid, base, settings, features, model),
        adapter=_adapter_config(settings, inputs.adapter_base),
        origin=inputs.origin,
        workers=workers,
    )
    optimizer.init(model.trainable_parameters())
    if inputs.checkpoint is not None:
        training.resume(inputs.checkpoint)
    if training.done >= training.steps:
        raise UserError(
            f"{settings.adapter_path} is at step {training.done} of {training.steps} already: "
            "raise --iters or --epochs to continue"
        )
    return training


def write_settings(settings: TrainSettings) -> Path:
    """Writes the YAML file that repeats a training into its folder, and returns its path."""
    folder = Path(settings.adapter_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--adapter-path {folder}: {problem.strerror}") from None
    file = folder / SETTINGS_NAME
    write_file(file, f"# llavacot lora-train -c {file}\n{settings_yaml(settings)}".encode())
    return file


def _origin(settings: TrainSettings, base: Base, train: Dataset) -> dict[str, Any]:
    """What a step depends on: the rows, the model and the settings. A resumption compares it."""
    decisive = {k: v for k, v in settings_object(settings).items() if k not in FREE_ON_RESUME}
    return {"data": train.digest, "model": base.hash, **decisive}


def _check_split(
    dataset: Dataset, base: TrainingBase, settings: TrainSettings, progress: Progress
) -> _Split:
    rows = check_rows(dataset, base.tokenizer, base.image_processor, settings.max_seq_length)
    checked = Checked.of(progress(f"checking {dataset.file.name}", dataset, rows))
    bad = len(dataset) - len(checked.rows)
    if bad and not settings.skip_bad:
        raise BadRowsError(dataset.file, list(checked.problems), len(dataset), checked.lost_folders)
    if not checked.rows:
        raise UserError(f"{dataset.file}: no row of {len(dataset)} is without problems")
    notes: tuple[str, ...] = (
        (f"{dataset.file}: {bad} of {len(dataset)} rows left out",) if bad else ()
    )
    notes += tuple(map(str, checked.lost_folders))
    return _Split(dataset, checked.rows, checked.lengths, notes)


def _features(settings: TrainSettings, base: Base, model: Mllama) -> FeatureCache | None:
    if not settings.cache_features:
        return None
    folder = Path(settings.adapter_path) / "features"
    dtype = model.multi_modal_projector.weight.dtype
    return FeatureCache(folder, settings.cache_features, f"{base.hash} {dtype}")


def _adapter_config(settings: TrainSettings, base: Base) -> AdapterConfig:
    lora = settings.lora_parameters
    full = settings.fine_tune_type == FineTuneType.FULL
    return AdapterConfig(
        FineTuneType(settings.fine_tune_type),
        settings.num_layers,
        None if full else LoRAParameters(lora.rank, lora.scale, lora.dropout, lora.adapted),
        base,
    )


def _validation(
    split: _Split | None,
    base: TrainingBase,
    settings: TrainSettings,
    features: FeatureCache | None,
    model: Mllama,
) -> Validation | None:
    if split is None:
        return None
    inputs = split.inputs_for(base, features)
    count = inputs.batches_per_epoch(settings)
    return Validation(
        inputs=inputs,
        batches=count if settings.val_batches == -1 else min(count, settings.val_batches),
        questions=[_question(split.dataset, row) for row in split.rows[: settings.val_answers]],
        loaded=LoadedModel(model, base.tokenizer, base.image_processor, {}, base.name, None, 0.0),
        max_tokens=_ANSWER_TOKENS,
    )


def _question(dataset: Dataset, row: int) -> ValidationQuestion:
    conversation = dataset.conversation(row)
    asked = next(turn.text for turn in conversation.turns if turn.role == "user")
    image = dataset.located(conversation)
    return ValidationQuestion(conversation.where, image, asked, conversation.answers[0])


def _count(tree: Any) -> int:
    return sum(array.size for _, array in tree_flatten(tree))
