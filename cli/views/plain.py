"""An answer as plain text, written while it comes: for pipes, files and `--plain`."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO

from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.views.answer_view import ShowLevel, Waited, not_measured, stage_remark
from llavacot_mlx.cli.views.ending import ending_line
from llavacot_mlx.cli.views.search_view import (
    CandidateProgress,
    Round,
    SearchProgress,
    retrace_line,
)
from llavacot_mlx.cli.views.summary_line import search_summary_line, summary_lines
from llavacot_mlx.plan.plan import Unit
from llavacot_mlx.trace.answer_events import Answered, Event, Interrupted
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    Noticed,
    Prepared,
    Retraced,
    SearchEvent,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.record import Trace

_LINE = 80  # characters of a candidate's line


class PlainView:
    """Writes a heading and the text of each stage, with a blank line in between.

    A search has a line for each candidate, once its round is over, and then the chosen answer.
    """

    def __init__(
        self, out: TextIO, show: ShowLevel, unit: Unit = Unit.STAGE, waited: Waited = not_measured
    ) -> None:
        self._out = out
        self._show = show
        self._waited = waited
        self._search = SearchProgress(unit)
        self._begun = False  # whether anything was written
        self._line_open = False  # whether the last character written was not a line break
        self._in_free_text = False
        self._held = ""  # white space that is written only if text follows it

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
        """Does nothing: plain text shows no progress."""

    def show(self, event: Event) -> None:
        if isinstance(event, Noticed) and self._search.holds(event.text):
            return
        if not isinstance(event, Answered | Interrupted):
            self._write_notices()
        match event:
            case StageStarted() | StageText() | StageEnded() | FreeText():
                self._show_stage(event)
            case Prepared():
                pass
            case Noticed(text):
                self._write_line(f"note: {text}")
            case Interrupted(trace):
                self._end_line()
                if self._search.started:
                    self._write_open_round()
                    self._write_line("stopped; the best path so far:")
                    self._show_chosen(trace)
                self._write_notices()
            case Answered(trace):
                if self._search.started:
                    self._show_chosen(trace)
                self._write_notices()
                lines = [ending] if (ending := ending_line(trace)) else []
                lines += [search_summary_line(trace)] if self._search.started else []
                self._write_line("\n".join([*lines, *summary_lines(trace, self._waited())]))
            case _:
                self._show_search(event)

    def _write_notices(self) -> None:
        """Writes what was noticed since the last round: under the answer if nothing followed."""
        for text in self._search.release_notices():
            self._write_line(f"note: {text}")

    def _show_stage(self, event: StageStarted | StageText | StageEnded | FreeText) -> None:
        match event:
            case StageStarted(stage) if self._show.stage(stage):
                self._begin_block()
                if self._show is not ShowLevel.ANSWER:
                    self._write(f"{stage.tag}\n")
            case StageText(stage, text) if self._show.stage(stage):
                self._write_trimmed(text)
            case StageEnded(stage, closed, _, note) if self._show.stage(stage):
                self._end_line()
                if remark := stage_remark(stage, closed, note):
                    self._write(f"({remark})\n")
            case FreeText(text) if self._show is ShowLevel.ALL:
                if not self._in_free_text and text.strip():
                    self._begin_block()
                    self._in_free_text = True
                if self._in_free_text:
                    self._write_trimmed(text)

    def _show_search(self, event: SearchEvent) -> None:
        match event:
            case CandidateStarted():
                self._search.start_candidate(event)
            case CandidateText() | CandidateEnded() | CandidateScored():
                self._search.update_candidate(event)
            case CandidatesKept():
                ended = self._search.end_round(event)
                if ended is not None:
                    self._write_round(ended)
            case Retraced():
                self._write_line(retrace_line(event))

    def _show_chosen(self, trace: Trace) -> None:
        """Writes the path that a search chose, stage by stage."""
        for event in trace.stage_events():
            self._show_stage(event)

    def _write_open_round(self) -> None:
        """Writes the round that was interrupted, if there is one."""
        round, self._search.round = self._search.round, None
        if round is not None:
            self._write_round(round)

    def _write_round(self, round: Round) -> None:
        """Writes the candidates of a round, a line each."""
        lines = [round.title]
        if round.identical:
            lines.append(_cut(round.identical_text))
        lines += [_candidate_line(candidate, round) for candidate in round.candidates]
        if round.kept_from_before:
            numbers = ", ".join(map(str, round.kept_from_before))
            lines.append(f"kept from before: {numbers}")
        if legend := self._search.new_legend(round):
            lines.append(f"({legend})")
        self._write_line("\n".join(lines))

    def _write_line(self, text: str) -> None:
        """Writes a block that is not part of the answer; only `--show all` has them."""
        if self._show is ShowLevel.ALL:
            self._begin_block()
            self._write(f"{text}\n")  # in one write: Ctrl-C leaves all of it or nothing

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


def _candidate_line(candidate: CandidateProgress, round: Round) -> str:
    digits = len(str(round.candidates[-1].number))
    number = f"{candidate.number:>{digits}}"
    origin = f"from {candidate.parent}" if round.forked else ""
    fields = [number, origin, candidate.verdict, _fate(candidate, round)]
    line = " ".join(field for field in fields if field)
    if round.identical:
        return _cut(line)
    gist = round.gist(candidate)
    if len(f"{line}: {gist}") > _LINE:
        gist = round.distinct_gist(candidate)
    return _cut(f"{line}: {gist}")


def _fate(candidate: CandidateProgress, round: Round) -> str:
    """What happened to a candidate, in a word or two."""
    if not candidate.ended:
        return "unfinished"
    fate = [] if candidate.closed else ["unclosed"]
    if round.kept:
        fate.append("kept" if candidate.kept else "dropped")
    return " ".join(fate)


def _cut(line: str) -> str:
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"
