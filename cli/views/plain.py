"""An answer as plain text, written while it comes: for pipes, files and `--plain`."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO

from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.views.answer_view import ShowLevel, not_closed
from llavacot_mlx.cli.views.search_view import Candidate, Round, SearchSoFar, step_back
from llavacot_mlx.cli.views.summary_line import search_summary_line, summary_line
from llavacot_mlx.plan.plan import Unit
from llavacot_mlx.trace.event_log import stage_events
from llavacot_mlx.trace.events import (
    Answered,
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Event,
    FreeText,
    Interrupted,
    Noticed,
    Prepared,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
)

_LINE = 80  # columns that a candidate's line may fill


class PlainView:
    """Writes a heading and the text of each stage, a blank line between any two.

    Of a search, a line for each candidate once its round was chosen from, then the chosen answer.
    """

    def __init__(self, out: TextIO, show: ShowLevel, unit: Unit = Unit.STAGE) -> None:
        self._out = out
        self._show = show
        self._search = SearchSoFar(unit)
        self._searched = False
        self._begun = False  # something was written
        self._line_open = False  # the last thing written was not a line break
        self._in_free_text = False
        self._held = ""  # white space that only counts if text follows it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, BrokenPipeError):
            self._end_line()
            self._write_open_round()

    def set_status(self, status: str) -> None:
        """Nothing to write: a plain text has no progress in it."""

    def show(self, event: Event) -> None:
        match event:
            case StageStarted(stage) if self._show.stage(stage):
                self._begin_block()
                if self._show is not ShowLevel.ANSWER:
                    self._write(f"{stage.tag}\n")
            case StageText(stage, text) if self._show.stage(stage):
                self._write_trimmed(text)
            case StageEnded(stage, closed) if self._show.stage(stage):
                self._end_line()
                if not closed:
                    self._write(f"({not_closed(stage)})\n")
            case FreeText(text) if self._show is ShowLevel.ALL:
                if not self._in_free_text and text.strip():
                    self._begin_block()
                    self._in_free_text = True
                if self._in_free_text:
                    self._write_trimmed(text)
            case CandidateStarted():
                self._searched = True
                self._search.started(event)
            case CandidateText() | CandidateEnded() | CandidateScored():
                self._search.take(event)
            case CandidatesKept():
                ended = self._search.chosen(event)
                if ended is not None:
                    self._write_round(ended)
            case Retraced() if self._show is ShowLevel.ALL:
                self._begin_block()
                self._write(f"{step_back(event)}\n")
            case Noticed(text) if self._show is ShowLevel.ALL:
                self._begin_block()
                self._write(f"note: {text}\n")
            case Interrupted(trace):
                self._end_line()
                if self._searched:
                    self._write_open_round()
                    if self._show is ShowLevel.ALL:
                        self._begin_block()
                        self._write("stopped; the best path so far:\n")
                    for told in stage_events(trace.text, trace.stages):
                        self.show(told)
            case Answered(trace):
                if self._searched:
                    for told in stage_events(trace.text, trace.stages):
                        self.show(told)
                if self._show is ShowLevel.ALL:
                    self._begin_block()
                    if self._searched:
                        self._write(f"{search_summary_line(trace)}\n")
                    self._write(f"{summary_line(trace)}\n")
            case (
                Prepared()
                | StageStarted()
                | StageText()
                | StageEnded()
                | FreeText()
                | Retraced()
                | Noticed()
            ):
                pass  # not asked for

    def _write_open_round(self) -> None:
        """Of a round that was interrupted, what there is."""
        round, self._search.round = self._search.round, None
        if round is not None:
            self._write_round(round)

    def _write_round(self, round: Round) -> None:
        """The candidates of a round, a line each."""
        if self._show is not ShowLevel.ALL:
            return
        self._begin_block()
        lines = [round.title]
        if round.identical:
            lines.append(_cut(round.told_once))
        digits = len(str(round.candidates[-1].number))
        for candidate in round.candidates:
            origin = f"from {candidate.parent}" if round.forked else ""
            number = f"{candidate.number:>{digits}}"
            fields = [number, origin, candidate.verdict, _fate(candidate, round)]
            line = " ".join(field for field in fields if field)
            if not round.identical:
                gist = round.gist(candidate)
                line += ": "
                if len(line + gist) > _LINE and round.shared:
                    gist = f"…{gist[round.shared :]}"  # where they differ says more
                line += gist
            lines.append(_cut(line))
        if round.kept_from_before:
            numbers = ", ".join(map(str, round.kept_from_before))
            lines.append(f"kept from before: {numbers}")
        self._write("".join(f"{line}\n" for line in lines))  # Ctrl-C leaves all of it or nothing

    def _begin_block(self) -> None:
        self._end_line()
        if self._begun:
            self._write("\n")
        self._begun = True
        self._in_free_text = False

    def _end_line(self) -> None:
        self._held = ""
        if self._line_open:
            self._write("\n")

    def _write_trimmed(self, text: str) -> None:
        """Writes a piece of a block without the white space around the block."""
        if not self._line_open:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            self._write(self._held + kept)
            self._held = ""
        if self._line_open:
            self._held += text[len(kept) :]

    def _write(self, text: str) -> None:
        self._out.write(printable(text))
        self._out.flush()
        self._line_open = not text.endswith("\n")


def _fate(candidate: Candidate, round: Round) -> str:
    """What became of a candidate, in a word or two."""
    if not candidate.ended:
        return "unfinished"
    fate = [] if candidate.closed else ["unclosed"]
    if round.kept:
        fate.append("kept" if candidate.kept else "dropped")
    return " ".join(fate)


def _cut(line: str) -> str:
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"
