"""`llavacot lora-train`: fine-tuning on four-stage data."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavacot_mlx.cli.byte_count import byte_count
from llavacot_mlx.cli.exits import INTERRUPTED, ending_well
from llavacot_mlx.cli.model import model_named
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.welcome import next_command, typed
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.settings import TrainSettings, read_settings, settings_from

if TYPE_CHECKING:
    from llavacot_mlx.cli.training_view import TrainingView
    from llavacot_mlx.train.check import CheckedRow
    from llavacot_mlx.train.dataset import Dataset
    from llavacot_mlx.train.loop import Training
    from llavacot_mlx.train.prepare import Prepared
    from llavacot_mlx.train.problem import Problem

CURVE_NAME = "curve.png"
_LISTED = 20  # problems of rows that are listed before the training refuses them

HELP = """\
Fine-tune a model on four-stage answers: LoRA, DoRA, or all weights. A quantised model is trained \
as QLoRA.

DATA is a JSONL file as in LLaVA-CoT-100k or in mlx-lm's chat format, or a folder with train.jsonl \
and, if you like, valid.jsonl and test.jsonl. Options may stand in a YAML file (-c); flags win.

\b
Examples:
  llavacot lora-train --model ./llava-cot-4bit --data train.jsonl --images pictures --iters 1000
  llavacot lora-train -c lora.yaml --learning-rate 2e-5
  llavacot lora-train -c lora.yaml --resume
"""

INTRODUCTION = """\
llavacot lora-train fine-tunes a model on answers in four stages, with LoRA, DoRA or in full.
"""

EXAMPLE = """\
For example, and then ask the model with what it learned:

  llavacot lora-train --model ./llava-cot-4bit --data train.jsonl --images pictures
  llavacot ask photo.jpg "What is unusual here?" --model ./llava-cot-4bit --adapter-path adapters
"""


def lora_train(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", metavar="FILE", help="A YAML file of options.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|ID", help="A folder, or an id on the hub. [default: the demo model]"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE|DIR", help="The rows to learn from.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the pictures are. [default: beside the data]"),
    ] = None,
    adapter_path: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The folder to write. [default: adapters]"),
    ] = None,
    fine_tune_type: Annotated[
        str | None, typer.Option(metavar="lora|dora|full", help="What learns. [default: lora]")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the change. [default: 8]")] = None,
    lora_scale: Annotated[
        float | None, typer.Option(help="Its factor, alpha / rank elsewhere. [default: 20]")
    ] = None,
    lora_dropout: Annotated[
        float | None, typer.Option(help="Share of its inputs left out. [default: 0]")
    ] = None,
    lora_keys: Annotated[
        str | None,
        typer.Option(
            metavar="SUFFIX,…",
            help="Linear layers that learn, such as q_proj,v_proj. [default: all of the text]",
        ),
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option(help="The last N text layers learn. [default: -1, all]")
    ] = None,
    train_vision: Annotated[
        bool | None, typer.Option("--train-vision", help="The vision tower learns as well.")
    ] = None,
    iters: Annotated[int | None, typer.Option(help="Steps. [default: 1000]")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Times through the data, instead of --iters.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows at once. [default: 4]")] = None,
    grad_accumulation_steps: Annotated[
        int | None, typer.Option(help="Batches a step. [default: 1]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="[default: 1e-5]", show_default=False)
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="adamw|adam|muon|sgd|adafactor", help="[default: adamw]"),
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Longer gradients are shortened to it. [default: never]")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Tokens of the longest row. [default: 2048]")
    ] = None,
    grad_checkpoint: Annotated[
        bool | None,
        typer.Option("--grad-checkpoint", help="Less memory, and each layer computed twice."),
    ] = None,
    cache_features: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Keep what vision makes of the pictures on disk, such as 20GB. [default: none]",
        ),
    ] = None,
    skip_bad: Annotated[
        bool | None, typer.Option("--skip-bad", help="Leave rows with problems out.")
    ] = None,
    steps_per_report: Annotated[
        int | None, typer.Option(help="Steps between lines about the loss. [default: 10]")
    ] = None,
    steps_per_eval: Annotated[
        int | None, typer.Option(help="Steps between validations. [default: 200]")
    ] = None,
    val_batches: Annotated[
        int | None, typer.Option(help="Batches a validation, -1 for all. [default: 25]")
    ] = None,
    val_answers: Annotated[
        int | None, typer.Option(help="Questions answered a validation. [default: 4]")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: 100]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --adapter-path.")
    ] = False,
    report_to: Annotated[
        str | None, typer.Option(metavar="wandb|swanlab", help="Report the log there as well.")
    ] = None,
    project_name: Annotated[
        str | None, typer.Option(help="The project's name there.", metavar="NAME")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|float16",
            help="What is computed in. [default: float32 on a CPU, 16 bits on a GPU]",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed learns the same. [default: 0]")
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when something goes wrong.")
    ] = False,
) -> None:
    with ending_well(debug=debug):
        flags: dict[str, Any] = {
            "model": model,
            "data": data,
            "images": images,
            "adapter_path": adapter_path,
            "fine_tune_type": fine_tune_type,
            "num_layers": num_layers,
            "train_vision": train_vision,
            "iters": iters,
            "epochs": epochs,
            "batch_size": batch_size,
            "grad_accumulation_steps": grad_accumulation_steps,
            "learning_rate": learning_rate,
            "optimizer": optimizer,
            "max_grad_norm": max_grad_norm,
            "max_seq_length": max_seq_length,
            "grad_checkpoint": grad_checkpoint,
            "cache_features": _bytes(cache_features),
            "skip_bad": skip_bad,
            "steps_per_report": steps_per_report,
            "steps_per_eval": steps_per_eval,
            "val_batches": val_batches,
            "val_answers": val_answers,
            "save_every": save_every,
            "report_to": report_to,
            "project_name": project_name,
            "dtype": dtype,
            "seed": seed,
        }
        low_rank: dict[str, Any] = {
            "rank": lora_rank,
            "scale": lora_scale,
            "dropout": lora_dropout,
            "keys": lora_keys.split(",") if lora_keys is not None else None,
        }
        _run(_settings(config, flags, low_rank), resume=resume)


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else byte_count(text)
    except UserError as problem:
        raise UserError(f"--cache-features: {problem}") from None


def _settings(
    config: Path | None, flags: dict[str, Any], low_rank: dict[str, Any]
) -> TrainSettings:
    """The file's settings, with the flags that were given in place of its own."""
    values = read_settings(config) if config else {}
    # The file is checked by itself, so that a mistake in it is named as the file's.
    settings_from(values, str(config))
    given = {name: value for name, value in flags.items() if value is not None}
    if "iters" in given and "epochs" in given:
        raise UserError("--iters and --epochs: give one of them")
    if "iters" in given:
        values.pop("epochs", None)
    rank = {name: value for name, value in low_rank.items() if value is not None}
    lora = {**values.get("lora_parameters", {}), **rank}
    merged = {**values, **given, **({"lora_parameters": lora} if lora else {})}
    settings = settings_from(merged, "the settings")
    if not settings.data:
        raise UserError("--data is missing: a JSONL file, or a folder with train.jsonl")
    return settings


def _run(settings: TrainSettings, *, resume: bool) -> None:
    from llavacot_mlx.blas import load_fast_blas

    load_fast_blas()  # before the first of the following imports MLX

    from llavacot_mlx.cli.training_view import TrainingView
    from llavacot_mlx.train.prepare import BadRowsError, Source, prepare, write_settings
    from llavacot_mlx.train.workers import Workers

    workers = Workers.all()
    view = TrainingView(
        sys.stdout, steps_per_report=settings.steps_per_report, quiet=not workers.leads
    )
    model = model_named(settings.model)
    try:
        prepared = prepare(
            settings,
            Source.of(model.name, model.folder),
            workers,
            resume=resume,
            watched=_watched if workers.leads else _unwatched,
        )
    except BadRowsError as bad:
        if workers.leads:
            _list(bad.problems)
        raise
    view.show_start(prepared)
    reporter = _reporter(settings) if workers.leads else None
    if workers.leads:
        write_settings(settings)
    _train(prepared, view, reporter)


def _watched(doing: str, dataset: Dataset, rows: Iterator[CheckedRow]) -> Iterator[CheckedRow]:
    """The rows as they come, with a bar on a terminal."""
    from llavacot_mlx.cli.render import CountBar

    with CountBar(doing, len(dataset)) as bar:
        for row in rows:
            bar.advance()
            yield row


def _unwatched(doing: str, dataset: Dataset, rows: Iterator[CheckedRow]) -> Iterator[CheckedRow]:
    return rows


def _list(problems: list[Problem]) -> None:
    for problem in problems[:_LISTED]:
        typer.echo(printable_line(f"row {problem.row}: {problem.kind}: {problem.detail}"), err=True)
    if len(problems) > _LISTED:
        typer.echo(f"… and {len(problems) - _LISTED} more", err=True)


def _train(prepared: Prepared, view: TrainingView, reporter: Any) -> None:
    """Runs the training, and shows and writes what happens; Ctrl-C ends it after its step."""
    from llavacot_mlx.train.events import Stepped, Validated
    from llavacot_mlx.train.log import TrainingLog, read_log
    from llavacot_mlx.train.memory import advice
    from llavacot_mlx.train.plots import draw_curve

    training, settings = prepared.training, prepared.settings
    leads = training.workers.leads
    folder = Path(settings.adapter_path)
    log = TrainingLog(folder, training.done) if leads else None
    try:
        with view, _stopping_kindly(training, view):
            view.begin(training)
            for event in training.run():
                if log and isinstance(event, Stepped | Validated):
                    log.append(event)
                    if reporter:
                        reporter(event)
                view.show(event)
    except RuntimeError as problem:
        if "memory" not in str(problem).lower() and "malloc" not in str(problem).lower():
            raise
        raise UserError(
            f"step {training.done + 1}: out of memory; try {advice(settings)}. The last "
            "checkpoint is kept"
        ) from None
    if leads:
        try:
            draw_curve(read_log(folder), folder / CURVE_NAME)
        except UserError as problem:  # what was learned is safe, and worth more than its picture
            view.say(f"note: {problem}")
    if training.done < training.steps:
        view.say(f"stopped at step {training.done}; go on: add --resume to the same command")
        if leads:
            sys.exit(INTERRUPTED)
        return
    view.say(f"wrote {typed(folder)}; now: {next_command(model=settings.model, adapter=folder)}")


@contextmanager
def _stopping_kindly(training: Training, view: TrainingView) -> Iterator[None]:
    """The first Ctrl-C lets the step end and be saved; the second one is as anywhere."""

    def stop(*_: object) -> None:
        training.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        view.say("stopping after this step; Ctrl-C once more stops at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _reporter(settings: TrainSettings) -> Any:
    """Hands the log to the services of --report-to, by mlx-lm's callbacks; None without one."""
    if settings.report_to is None:
        return None
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    from llavacot_mlx.train.events import Stepped
    from llavacot_mlx.train.log import row_of
    from llavacot_mlx.train.settings import settings_object

    try:
        callback = get_reporting_callbacks(
            settings.report_to,
            project_name=settings.project_name,
            log_dir=settings.adapter_path,
            config=settings_object(settings),
        )
    except (ImportError, ValueError) as problem:
        raise UserError(f"--report-to {settings.report_to}: {problem}") from None

    def report(event: Any) -> None:
        row = {"iteration": event.step, **row_of(event)}
        if isinstance(event, Stepped):
            callback.on_train_loss_report(row)
        else:
            callback.on_val_loss_report(row)

    return report
