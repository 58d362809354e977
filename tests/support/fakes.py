"""Stand-ins for what the command line uses: an engine without weights, a terminal without glass."""

from __future__ import annotations

import errno
import json
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from rich.cells import cell_len

from llavacot_mlx.errors import UserError
from llavacot_mlx.plan.plan_yaml import plan_to_dict
from llavacot_mlx.prompt.stages import Closed, Opened, Stage, StageEvent, StageParser, StageRecord
from llavacot_mlx.request import Request
from llavacot_mlx.trace.answer_events import Answered, Event
from llavacot_mlx.trace.event_log import EventLog
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    LoggedEvent,
    Noticed,
    Prepared,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import ChoiceRecord, NodeRecord, SearchRecord, Trace
from llavacot_mlx.usage import Timings, Usage

GOOD_ANSWER = (
    "<SUMMARY> I need to count the red circles. </SUMMARY>\n\n"
    "<CAPTION> Top left: a large red circle. Bottom right: a small red circle. </CAPTION>\n\n"
    "<REASONING> One red circle is at the top left and one at the bottom right. 1 + 1 = 2. "
    "</REASONING>\n\n"
    "<CONCLUSION> 2 </CONCLUSION>"
)


class ScriptedRound(TypedDict, total=False):
    """A round of candidates as it stands in a script; nodes are numbered as the engine does."""

    stage: str | None
    parents: list[int | None]
    """One a candidate; without, all go on from the first that was kept."""
    texts: list[str]
    scores: list[float | None]
    judge: str
    """Who gave the scores; without, nobody says."""
    kept: list[int]
    back_to: str
    """The stage that the search goes back to after this round."""


# As `swires` would: captions, reasonings, back to the captions, and on.
RETRACING: list[ScriptedRound] = [
    {"stage": "summary", "texts": ["<SUMMARY> I count. </SUMMARY>"], "kept": [0]},
    {
        "stage": "caption",
        "texts": ["<CAPTION> One circle. </CAPTION>", "<CAPTION> A square. </CAPTION>"],
        "scores": [0.61, 0.2],
        "kept": [1],
    },
    {
        "stage": "reasoning",
        "texts": ["<REASONING> There is one. </REASONING>", "<REASONING> None, so"],
        "scores": [0.41, None],
        "kept": [3],
        "back_to": "caption",
    },
    {
        "stage": "caption",
        "parents": [0, 0],
        "texts": ["<CAPTION> Two circles. </CAPTION>", "<CAPTION> A line. </CAPTION>"],
        "scores": [0.93, 0.1],
        "kept": [5],
    },
    {
        "stage": "reasoning",
        "texts": ["<REASONING> 1 + 1 = 2. </REASONING>", "<REASONING> 1 + 2 = 3. </REASONING>"],
        "scores": [0.97, 0.03],
        "kept": [7, 3],
    },
    {
        "stage": "conclusion",
        "parents": [7, 3],
        "texts": ["<CONCLUSION> 2 </CONCLUSION>", "<CONCLUSION> 1 </CONCLUSION>"],
        "scores": [0.98, 0.4],
        "kept": [9],
    },
]


@dataclass(frozen=True)
class Script:
    """What the fake engine does."""

    text: str = GOOD_ANSWER
    """What it answers, whatever it is asked."""
    pause: float = 0.0
    """Seconds before each token."""
    loading: float = 0.0
    """Seconds that loading takes."""
    user_error: str = ""
    """Raised after the text, in place of an answer."""
    os_error: str = ""
    """The name of a file that cannot be read after the text."""
    bug: str = ""
    """Raised after the text, as only a mistake of ours would be."""
    runtime_error: str = ""
    """Raised after the text, as MLX would."""
    rounds: tuple[ScriptedRound, ...] = ()
    """What a search does; without, the answer is written in one go whatever the method."""
    notices: tuple[str, ...] = ()
    """What the person is told before anything else."""


class FakeAssistant:
    """`llavacot_mlx.assistant.Assistant` without a model: it follows a script."""

    script = Script()

    def __init__(self, name: str) -> None:
        self._name = name

    @classmethod
    def load(
        cls, path: str | Path, *, adapter: Path | None = None, dtype: str = "auto"
    ) -> FakeAssistant:
        time.sleep(cls.script.loading)
        return cls(str(path))

    def stream(self, request: Request) -> FakeAnswerStream:
        return FakeAnswerStream(self.script, self._name, request)


class FakeAnswerStream:
    """`llavacot_mlx.answer.AnswerStream` of a script."""

    def __init__(self, script: Script, name: str, request: Request) -> None:
        self._script, self._name, self._request = script, name, request
        self._answer = _FakeAnswer()
        self._tree = _FakeSearch(script)
        self._log = EventLog()
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = next(self._events)
        if isinstance(event, LoggedEvent):
            self._log.add(event)
        return event

    def so_far(self) -> Trace:
        if self._script.rounds:
            self._answer = _FakeAnswer()
            for piece in _pieces(self._tree.chosen_text):
                list(self._answer.push(piece))
            list(self._answer.finish())
        return replace(self._trace(), interrupted=True, finish=Finish.INTERRUPTED)

    def _run(self) -> Iterator[Event]:
        script, answer = self._script, self._answer
        for notice in script.notices:
            yield Noticed(notice)
        yield Prepared(prompt_tokens=7, tiles=1)
        pieces = _pieces(script.text)[: self._request.max_tokens]
        if script.rounds:
            yield from self._tree.run()
            pieces = _pieces(self._tree.chosen_text)
        for piece in pieces:
            if not script.rounds:  # the candidates have taken their time already
                time.sleep(script.pause)
            for event in answer.push(piece):
                if not script.rounds:
                    yield event
        for event in answer.finish():
            if not script.rounds:
                yield event
        if script.user_error:
            raise UserError(script.user_error)
        if script.os_error:
            raise OSError(errno.EIO, "Input/output error", script.os_error)
        if script.runtime_error:
            raise RuntimeError(script.runtime_error)
        if script.bug:
            raise ZeroDivisionError(script.bug)
        yield Answered(self._trace())

    def _trace(self) -> Trace:
        plan, answer, tree = self._request.plan, self._answer, self._tree
        pieces = answer.pieces
        cut = len(pieces) < len(_pieces(self._script.text)) and not self._script.rounds
        return Trace(
            finish=Finish.LENGTH if cut else Finish.STOP,
            question=self._request.question,
            image=str(self._request.image),
            model=self._name,
            seed=self._request.seed,
            stages=tuple(answer.records),
            text="".join(pieces),
            prompt_token_ids=tuple(range(7)),
            token_ids=tuple(range(len(pieces))),
            search=SearchRecord(
                plan.method,
                tree.retraces,
                tuple(tree.nodes),
                tuple(tree.choices),
                plan_to_dict(plan),
                self._script.notices,
            ),
            max_tokens=self._request.max_tokens,
            usage=Usage(
                prompt_tokens=7,
                images_encoded=1,
                prefilled_tokens=7,
                decoded_tokens=sum(n.tokens for n in tree.nodes) or len(pieces),
                judge_tokens=sum(n.score is not None for n in tree.nodes),
                reused_tokens=7 * max(0, len(tree.nodes) - 1),
            ),
            timings=Timings(
                load_s=4.1, vision_s=0.32, first_token_s=1.5, decode_s=len(pieces) / 18.0
            ),
            peak_memory_bytes=7_300_000_000,
            events=self._log.events,
        )


def command(folder: Path, script: Mapping[str, object] | None = None) -> list[str]:
    """The words that start `llavacot` over the fake engine, which follows `script`.

    `folder` is as the fixture `desk` makes it.
    """
    (folder / "script.json").write_text(json.dumps(script or {}), encoding="utf-8")
    program = Path(__file__).with_name("fake_llavacot.py")
    return [sys.executable, str(program), str(folder / "script.json")]


def _pieces(text: str) -> list[str]:
    """Beginnings of words with the space before them, as tokens roughly are."""
    return re.findall(r" ?\S{1,6}|\s", text)


class _FakeSearch:
    """Candidates that write the texts of a script, a piece each in turn."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.nodes: list[NodeRecord] = []
        self.retraces = 0
        self.choices: list[ChoiceRecord] = []
        self._kept: list[int] = []

    @property
    def chosen_text(self) -> str:
        texts: list[str] = []
        node: int | None = next(iter(self._kept), None)
        while node is not None:
            texts.insert(0, self.nodes[node].text)
            node = self.nodes[node].parent
        return "\n\n".join(texts)

    def run(self) -> Iterator[Event]:
        for scripted in self._script.rounds:
            yield from self._round(scripted)

    def _round(self, scripted: ScriptedRound) -> Iterator[Event]:
        first = len(self.nodes)
        stage = Stage(scripted["stage"]) if scripted.get("stage") else None
        parents = scripted.get("parents", [next(iter(self._kept), None)] * len(scripted["texts"]))
        writing = {}
        for place, (text, parent) in enumerate(zip(scripted["texts"], parents, strict=True)):
            pieces = _pieces(text)
            writing[first + place] = iter(pieces)
            closed = text.endswith(">")
            node = NodeRecord(
                first + place, parent, stage, text, len(pieces), closed, None, False, self.retraces
            )
            self.nodes.append(node)
            yield CandidateStarted(node.id, parent, stage, self.retraces)
        while writing:
            for number, rest in list(writing.items()):
                time.sleep(self._script.pause)
                piece = next(rest, None)
                if piece is not None:
                    yield CandidateText(number, piece)
                else:
                    del writing[number]
                    node = self.nodes[number]
                    yield CandidateEnded(number, stage, node.closed, node.tokens)
        for place, score in enumerate(scripted.get("scores", [])):
            self.nodes[first + place] = replace(self.nodes[first + place], score=score)
            yield CandidateScored(first + place, score, scripted.get("judge", ""))
        self._kept = scripted["kept"]
        for number in self._kept:
            self.nodes[number] = replace(self.nodes[number], kept=True)
        back_to = Stage(scripted["back_to"]) if "back_to" in scripted else None
        step = 0 if stage is None else list(Stage).index(stage)
        written = tuple(range(first, len(self.nodes)))
        self.choices.append(ChoiceRecord(step, self.retraces, written, tuple(self._kept), back_to))
        yield CandidatesKept(tuple(self._kept))
        if back_to is not None:
            self.retraces += 1
            yield Retraced(back_to, self.retraces)


class _FakeAnswer:
    def __init__(self) -> None:
        self.records: list[StageRecord] = []
        self.pieces: list[str] = []
        self._parser = StageParser()
        self._text = self._note = ""
        self._tokens = 0

    def push(self, piece: str) -> Iterator[Event]:
        self._tokens += 1
        self.pieces.append(piece)
        yield from self._told(self._parser.feed(piece))

    def finish(self) -> Iterator[Event]:
        yield from self._told(self._parser.finish())

    def _told(self, events: list[StageEvent]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Opened):
                self._text, self._note = "", event.note
                yield StageStarted(event.stage)
            elif isinstance(event, Closed):
                tokens, self._tokens = self._tokens, 0
                note = "; ".join(filter(None, (self._note, event.note)))
                self.records.append(
                    StageRecord(event.stage, self._text.strip(), event.by_tag, tokens, note=note)
                )
                yield StageEnded(event.stage, event.by_tag, tokens, note)
            elif event.stage is None:
                yield FreeText(event.text)
            else:
                self._text += event.text
                yield StageText(event.stage, event.text)


class FakeTerminal:
    """A terminal that obeys the few sequences we write and refuses any other.

    `history` has the lines that scrolled away at the top, `screen` those that are visible.
    """

    _SEQUENCE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")
    _BEGINNING = re.compile(r"\x1b(\[\??[0-9;]*)?")  # of a sequence whose end comes later

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.history: list[str] = []
        self.screen: list[str] = [""]
        self.cursor_visible = True
        self._row = self._column = 0
        self._unfinished = ""

    @property
    def lines(self) -> list[str]:
        """Everything that a person can scroll back to, without the spaces at the ends."""
        return [line.rstrip() for line in [*self.history, *self.screen]]

    def feed(self, output: str) -> None:
        output = self._unfinished + output
        self._unfinished = ""
        at = 0
        while at < len(output):
            if self._BEGINNING.fullmatch(output, at):
                self._unfinished = output[at:]
                return
            if match := self._SEQUENCE.match(output, at):
                self._obey(*match.groups())
                at = match.end()
                continue
            character = output[at]
            at += 1
            if character == "\r":
                self._column = 0
            elif character == "\n":
                self._down()
            elif unicodedata.category(character) != "Cc":
                self._put(character)
            else:
                raise AssertionError(f"unexpected control character {character!r}")

    def narrow(self, width: int, height: int) -> None:
        """The window becomes smaller, and the lines that no longer fit are folded."""
        assert width <= self.width
        self.width, self.height = width, height
        rows: list[str] = []
        for number, line in enumerate(self.screen):
            if number == self._row:
                row = len(rows) + self._column // width
            rows += [line[at : at + width] for at in range(0, max(1, len(line)), width)]
        self._row, self._column = row, self._column % width
        self.screen = rows
        while len(self.screen) > height:
            self.history.append(self.screen.pop(0))
            self._row -= 1

    def _obey(self, private: str, numbers: str, verb: str) -> None:
        if private:
            if numbers == "25":
                self.cursor_visible = verb == "h"
            else:
                assert numbers == "2026", f"unexpected mode {numbers}"
        elif verb == "A":
            self._row = max(0, self._row - int(numbers or 1))
        elif verb == "J":
            assert numbers in ("", "0")
            del self.screen[self._row + 1 :]
            self.screen[self._row] = self.screen[self._row][: self._column]
        elif verb == "K":
            assert numbers == "2"
            self.screen[self._row] = ""
        else:
            assert verb == "m", f"unexpected sequence ESC [ {numbers} {verb}"

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.screen):
            self.screen.append("")
        if len(self.screen) > self.height:
            self.history.append(self.screen.pop(0))
            self._row -= 1

    def _put(self, character: str) -> None:
        # One string element a character: enough here, where a line is always written from its
        # first column to its end.
        line = self.screen[self._row]
        assert cell_len(line[: self._column] + character) <= self.width, f"too long: {line}"
        self.screen[self._row] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1
