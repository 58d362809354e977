"""The view of a training run: a summary and a sample first, then steps and validations."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn
from rich.table import Table
from rich.text import Text

from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.units import format_bytes
from llavacot_mlx.cli.views.bars import ProgressBar
from llavacot_mlx.train.data.sample import TokenKind
from llavacot_mlx.train.events import (
    Answer,
    Event,
    KindMetrics,
    Saved,
    Stepped,
    Validated,
    Validating,
    Warned,
)

if TYPE_CHECKING:
    from llavacot_mlx.train.prepare import PreparedRun
    from llavacot_mlx.train.trainer import Training

_COLORS = {
    TokenKind.MASKED: "dim",
    TokenKind.SUMMARY: "cyan",
    TokenKind.CAPTION: "bright_blue",  # blue cannot be read on black
    TokenKind.REASONING: "magenta",
    TokenKind.CONCLUSION: "green",
    TokenKind.TAGS: "yellow",
}
_MAX_ANSWER = 300  # characters shown of an answer in a validation


class _StepsBar(ProgressBar):
    """A progress bar of steps, with the metrics of the last one."""

    def __init__(self, console: Console) -> None:
        figures = TextColumn("{task.fields[figures]}", markup=False)
        super().__init__(console, "training", None, MofNCompleteColumn(), figures, width=24)
        self._progress.update(self._task, figures="")

    def at(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def step(self, done: int, figures: str) -> None:
        self._progress.update(self._task, completed=done, figures=figures)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)


class TrainingView:
    """Prints a line per event, above a progress bar on a terminal. With `quiet`, prints nothing."""

    def __init__(self, out: TextIO, *, steps_per_report: int, quiet: bool) -> None:
        self._console = Console(file=out, highlight=False, markup=False, emoji=False, quiet=quiet)
        self._terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._every = steps_per_report
        self._since: list[Stepped] = []  # steps since the last line
        self._bar = _StepsBar(self._console)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def show_start(self, prepared: PreparedRun) -> None:
        """Prints the summary of a training and a sample before the first step."""
        facts = Table.grid(padding=(0, 2))
        for name, value in _summary(prepared):
            facts.add_row(Text(name, "dim"), Text(value))
        self._console.print(facts)
        for note in prepared.notes:
            self._console.print(Text(f"note: {note}", "yellow"), soft_wrap=not self._terminal)
        self._console.print()
        self._console.print(
            Text(f"Tokens of {prepared.example.where}; masked ones are not trained on:", "bold")
        )
        if self._terminal:
            self._console.print(_legend())
            self._console.print(_colored(prepared.example.runs))
        else:
            for kind, text in prepared.example.runs:
                name = kind.name.lower()
                self._console.print(f"  {name:<12}{printable(text)!r}", soft_wrap=True)
        self._console.print()

    def begin(self, training: Training) -> None:
        self._bar.at(training.done, training.steps)

    def show(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._show_step(event)
        elif isinstance(event, Validating):
            self._bar.doing("validating")
        elif isinstance(event, Validated):
            self._bar.doing("training")
            self._show_validation(event)
        elif isinstance(event, Warned):
            self._console.print(
                Text(f"warning: {event.text}", "yellow"), soft_wrap=not self._terminal
            )
        elif isinstance(event, Saved) and self._terminal:
            self._console.print(Text(f"step {event.step}: saved to {event.folder}", "dim"))

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, soft_wrap=not self._terminal)

    def _show_step(self, step: Stepped) -> None:
        self._since.append(step)
        figures = f"loss {step.loss:.3f}  {_speed([step])}  {format_bytes(step.peak_memory_bytes)}"
        self._bar.step(step.step, figures)
        if step.step % self._every == 0:
            tokens = sum(one.learned_tokens for one in self._since)
            loss = sum(one.loss * one.learned_tokens for one in self._since) / tokens
            self.say(
                f"step {step.step:>6}  loss {loss:.4f}  rate {step.learning_rate:.1e}  "
                f"gradient {step.grad_norm:.2f}  {_speed(self._since)}  "
                f"{format_bytes(step.peak_memory_bytes)}"
            )
            self._since = []

    def _show_validation(self, validated: Validated) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(f"step {validated.step}, validation")
        for heading in ("loss", "accuracy", "tokens"):
            table.add_column(heading, justify="right")
        for kind, metrics in validated.kinds.items():
            name = "tags" if kind is TokenKind.TAGS else kind.name
            table.add_row(Text(name, _COLORS[kind]), *_cells(metrics))
        total = sum(each.tokens for each in validated.kinds.values())
        correct = sum(each.tokens * each.accuracy for each in validated.kinds.values())
        if total:
            table.add_row(
                Text("all", "bold"), *_cells(KindMetrics(validated.loss, correct / total, total))
            )
        self._console.print(table)
        if validated.answers:
            well_formed = sum(answer.well_formed for answer in validated.answers)
            right = sum(answer.right for answer in validated.answers)
            count = len(validated.answers)
            self._console.print(
                f"{count} answers: {well_formed} of {count} well-formed, {right} of {count} right"
            )
            for answer in validated.answers:
                self._console.print(_answer(answer), soft_wrap=not self._terminal)


def _summary(prepared: PreparedRun) -> list[tuple[str, str]]:
    memory, settings = prepared.memory, prepared.settings
    share = prepared.trainable / prepared.parameters
    valid = f", {prepared.validation_rows} for validation" if prepared.validation_rows else ""
    training = prepared.training
    rows = settings.batch_size * settings.grad_accumulation_steps
    return [
        ("model", prepared.model_name),
        ("data", f"{prepared.rows} rows{valid}"),
        (
            "trains",
            f"{prepared.trainable / 1e6:,.3f} M of {prepared.parameters / 1e6:,.1f} M parameters "
            f"({100 * share:.3f}%), {settings.fine_tune_type}",
        ),
        ("steps", f"{training.done + 1} to {training.steps}, {rows} rows each"),
        (
            "memory",
            f"about {format_bytes(memory.total)} ({format_bytes(memory.weights)} weights, "
            f"{format_bytes(memory.learning)} gradients and optimizer, "
            f"{format_bytes(memory.activations)} for a batch of the longest rows)",
        ),
        ("writes to", settings.adapter_path),
    ]


def _legend() -> Text:
    legend = Text()
    for kind in TokenKind:
        legend.append(f"■ {kind.name.lower()}  ", _COLORS[kind])
    return legend


def _colored(runs: list[tuple[TokenKind, str]]) -> Text:
    text = Text()
    for kind, words in runs:
        text.append(printable(words), _COLORS[kind])
    return text


def _answer(answer: Answer) -> Text:
    mark, color = ("✓", "green") if answer.right else ("✗", "red")
    said = answer.conclusion if answer.conclusion is not None else answer.text
    text = Text(f"{mark} ", color)
    text.append(f"{_shorten(answer.question)} ")
    text.append(_shorten(said) or "(nothing)", "bold")
    if not answer.right:
        text.append(f"  (reference: {_shorten(answer.reference)})")
    if not answer.well_formed:
        text.append("  not well-formed", "red")
    return text


def _shorten(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= _MAX_ANSWER else line[: _MAX_ANSWER - 1] + "…"


def _cells(figures: KindMetrics) -> tuple[str, str, str]:
    return f"{figures.loss:.4f}", f"{100 * figures.accuracy:.1f}%", f"{figures.tokens:,}"


def _speed(steps: list[Stepped]) -> str:
    seconds = sum(step.seconds for step in steps)
    return f"{sum(step.learned_tokens for step in steps) / max(seconds, 1e-9):,.0f} tokens/s"
