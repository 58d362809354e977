"""`llavacot lora-train`: fine-tunes a model on four-stage answers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavacot_mlx.cli.exit_codes import INTERRUPTED, check_usage, handle_errors
from llavacot_mlx.cli.gpu_advice import Work, gpu_line
from llavacot_mlx.cli.next_steps import next_command, shell_path
from llavacot_mlx.cli.options import DebugOption
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.resolve_model import resolve_model
from llavacot_mlx.cli.setting_flags import given_settings, with_setting_flags
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.settings import TrainSettings, settings_from

if TYPE_CHECKING:
    from llavacot_mlx.cli.views.training import TrainingView
    from llavacot_mlx.train.data.checks import CheckedRow
    from llavacot_mlx.train.data.dataset import Dataset
    from llavacot_mlx.train.prepare import BadRowsError, PreparedRun
    from llavacot_mlx.train.trainer import Training

CURVE_NAME = "curve.png"
_MAX_LISTED = 20  # problems of rows that are listed before the error

HELP = """\
Fine-tune a model on four-stage answers. It trains LoRA or DoRA adapters, or the full weights; \
on a quantized model, LoRA is QLoRA.

The data is a JSONL file of rows as in LLaVA-CoT-100k or in mlx-lm's chat format, or a folder with \
train.jsonl and optionally valid.jsonl and test.jsonl. Settings can also be given in a YAML file \
(-c); flags override it.

\b
Examples:
  llavacot lora-train --model ./llava-cot-4bit --data train.jsonl --images pictures --iters 1000
  llavacot lora-train -c lora.yaml --learning-rate 2e-5
  llavacot lora-train -c lora.yaml --resume
"""

INTRODUCTION = """\
llavacot lora-train fine-tunes a model on four-stage answers: LoRA, DoRA or the
full weights.

Fine-tune a model, then ask it a question with the new adapter:

  llavacot lora-train --model ./llava-cot-4bit --data train.jsonl --images pictures
  llavacot ask photo.jpg "What is unusual here?" --model ./llava-cot-4bit --adapter-path adapters
"""


@with_setting_flags
def lora_train(
    flags: Mapping[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(
            "-c", "--config", metavar="FILE", help="A YAML file of settings; flags override it."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the checkpoint in --adapter-path.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.TRAIN):
        values = {} if config is None else _file_settings(config)
        with check_usage():
            given = given_settings(flags)
            settings = _settings(values, given)
        _run(settings, resume=resume, named_in=None if "model" in given else config)


def _file_settings(config: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises UserError that names the file."""
    from llavacot_mlx.train.settings_yaml import read_settings

    values = read_settings(config)
    settings_from(values, str(config))
    return values


def _settings(values: dict[str, Any], given: dict[str, Any]) -> TrainSettings:
    """The settings of the YAML file, overridden by the flags that were given."""
    if "iters" in given and "epochs" in given:
        raise UserError("--iters and --epochs: give one of them")
    if "iters" in given:
        values.pop("epochs", None)
    for name, value in given.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    settings = settings_from(values, "the settings")
    if not settings.data:
        raise UserError("--data is missing: a JSONL file, or a folder with train.jsonl")
    return settings


def _run(settings: TrainSettings, *, resume: bool, named_in: Path | None) -> None:
    """`named_in` is the YAML file that names the model; None if a flag does."""
    from llavacot_mlx.cli.openblas import load_fast_blas

    load_fast_blas()  # before the first of the following imports MLX

    from llavacot_mlx.cli.views.training import TrainingView
    from llavacot_mlx.train.distributed import Workers
    from llavacot_mlx.train.prepare import BadRowsError, TrainingBase, prepare, write_settings

    workers = Workers.all()
    view = TrainingView(
        sys.stdout, steps_per_report=settings.steps_per_report, quiet=not workers.is_main
    )
    model = resolve_model(settings.model, named_in=named_in)
    try:
        prepared = prepare(
            settings,
            TrainingBase.of(model.name, model.folder),
            workers,
            resume=resume,
            progress=_with_bar if workers.is_main else _without_bar,
        )
    except BadRowsError as bad:
        if workers.is_main:
            _print_problems(bad)
        raise
    view.show_start(prepared)
    reporter = _reporter(settings) if workers.is_main else None
    if workers.is_main:
        write_settings(settings)
    _train(prepared, view, reporter)


def _with_bar(doing: str, dataset: Dataset, rows: Iterator[CheckedRow]) -> Iterator[CheckedRow]:
    """Passes on the rows, with a progress bar on a terminal."""
    from llavacot_mlx.cli.views.bars import CountBar

    with CountBar(doing, len(dataset)) as bar:
        for row in rows:
            bar.advance()
            yield row


def _without_bar(doing: str, dataset: Dataset, rows: Iterator[CheckedRow]) -> Iterator[CheckedRow]:
    return rows


def _print_problems(bad: BadRowsError) -> None:
    from llavacot_mlx.train.data.checks import LostFolder, grouped

    problems = grouped(bad.problems, bad.lost_folders)
    for problem in problems[:_MAX_LISTED]:
        if isinstance(problem, LostFolder):
            line = str(problem)
        else:
            line = f"row {problem.row}: {problem.kind}: {problem.detail}"
        typer.echo(printable_line(line), err=True)
    if len(problems) > _MAX_LISTED:
        typer.echo(f"… and {len(problems) - _MAX_LISTED} more", err=True)


def _train(prepared: PreparedRun, view: TrainingView, reporter: Any) -> None:
    """Runs the training, shows its events, and logs them. Ctrl-C stops it after the step."""
    from llavacot_mlx.train.events import Stepped, Validated
    from llavacot_mlx.train.log import TrainingLog, read_log
    from llavacot_mlx.train.memory import advice
    from llavacot_mlx.train.plots import draw_curve

    training, settings = prepared.training, prepared.settings
    is_main = training.workers.is_main
    folder = Path(settings.adapter_path)
    log = TrainingLog(folder, training.done) if is_main else None
    try:
        with view, _stop_after_step(training, view):
            view.begin(training)
            for event in training.run():
                if log and isinstance(event, Stepped | Validated):
                    log.append(event)
                    if reporter:
                        reporter(event)
                view.show(event)
    except (RuntimeError, MemoryError) as problem:
        line = gpu_line(problem, Work.TRAIN, smaller=advice(settings))
        if line is None:
            raise
        raise UserError(f"step {training.done + 1}: {line}. The last checkpoint is kept") from None
    if is_main:
        try:
            title = f"{settings.model or 'demo model'} on {settings.data}"
            draw_curve(read_log(folder), folder / CURVE_NAME, title)
        except UserError as problem:  # the adapter is saved, and does not depend on the plot
            view.say(f"note: {problem}")
    if training.done < training.steps:
        view.say(f"stopped at step {training.done}; to continue, add --resume to the same command")
        if is_main:
            sys.exit(INTERRUPTED)
        return
    view.say(
        f"wrote {shell_path(folder)}; now: {next_command(model=settings.model, adapter=folder)}"
    )


@contextmanager
def _stop_after_step(training: Training, view: TrainingView) -> Iterator[None]:
    """On the first Ctrl-C, the training finishes its step and saves it; the second one ends it."""

    def stop(*_: object) -> None:
        training.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        view.say("stopping after this step; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _reporter(settings: TrainSettings) -> Any:
    """A function that reports an event to the service of --report-to by mlx-lm's callbacks.

    None without --report-to.
    """
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
