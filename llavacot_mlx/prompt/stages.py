"""Finds the four stages of an answer in text that arrives piece by piece."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class Stage(enum.StrEnum):
    """A stage of a LLaVA-CoT answer, in the order in which the model writes them."""

    SUMMARY = "summary"
    CAPTION = "caption"
    REASONING = "reasoning"
    CONCLUSION = "conclusion"

    @property
    def tag(self) -> str:
        """The name inside the tag: `SUMMARY` of `<SUMMARY>`."""
        return self.value.upper()

    @property
    def opening(self) -> str:
        return f"<{self.tag}>"

    @property
    def closing(self) -> str:
        return f"</{self.tag}>"

    @property
    def following(self) -> Stage | None:
        """The stage that the model is trained to write next, None after the last."""
        order = list(Stage)
        index = order.index(self) + 1
        return order[index] if index < len(order) else None


@dataclass(frozen=True)
class StageRecord:
    """One stage of an answer, with its text and its score."""

    stage: Stage
    text: str
    """The stage's text without tags and surrounding white space."""
    closed: bool
    """False when the stage's closing tag never came."""
    tokens: int
    """Tokens generated since the stage before it ended, tags and line breaks included."""
    score: float | None = None
    """The judge's score; None where no judge was asked."""
    candidates: int = 1
    """Number of candidates that the stage was chosen from."""
    note: str = ""
    """How the stage was found, where its tags are not as trained; empty otherwise."""


_SENTENCE_END = re.compile(r"[.!?。！？…]['\")\]»”’]*\s*\Z")


def ends_sentence(text: str) -> bool:
    """Returns whether a text ends with a punctuation mark of a sentence.

    Quotes, brackets and white space may follow the mark.
    """
    return _SENTENCE_END.search(text) is not None


@dataclass(frozen=True)
class Opened:
    """A stage's opening tag was read."""

    stage: Stage
    note: str = ""
    """How it was recognized, where the tag is not as trained; empty otherwise."""
    written: str = field(default="", compare=False)
    """The tag as it stands in the text."""


@dataclass(frozen=True)
class Text:
    """Text that belongs to `stage`, or to no stage at all. Its own tags are never part of it."""

    stage: Stage | None
    text: str


@dataclass(frozen=True)
class Closed:
    """A stage ended. `by_tag` is False when its closing tag never came."""

    stage: Stage
    by_tag: bool
    note: str = ""
    """How its end was recognized, where the tag is not as trained; empty otherwise."""
    written: str = field(default="", compare=False)
    """What ended it as it stands in the text: its tag, another stage's, or a piece of one."""


StageEvent = Opened | Text | Closed

# The published weights sometimes write "(Here begins the SUMMARY stage)" instead of "<SUMMARY>"
# (LLaVA-CoT issues #12 and #16). Both spellings mean the same.
_TAGS: dict[str, tuple[Stage, bool]] = {}
for _stage in Stage:
    _TAGS[_stage.opening] = (_stage, True)
    _TAGS[_stage.closing] = (_stage, False)
    _TAGS[f"(Here begins the {_stage.tag} stage)"] = (_stage, True)
    _TAGS[f"(Here ends the {_stage.tag} stage)"] = (_stage, False)

_BLANK = r"[ \t]{0,3}"
# Markdown's emphasis around a tag: up to three marks of one kind before it, as many behind it. One
# group for all kinds, since a pattern for each kind and tag took 25 ms to compile at every start.
_WRAP = r"(?:(?P<a>[*_])(?:(?P<b>(?P=a))(?P<c>(?P=a))?)?)?"
_WRAP_AGAIN = r"(?(a)(?P=a))(?(b)(?P=b))(?(c)(?P=c))"
_WRAP_BEGUN = r"(?:(?P=a)(?:(?P=b)(?P=c)?)?)"


def _spellings(name: str) -> list[list[str]]:
    """Patterns of the tags of a stage, atom by atom, in any case and with blanks inside."""
    spoken = [
        [r"\(", *"here", " ", *verb, " ", *"the", " ", *name, " ", *"stage", r"\)"]
        for verb in ("begins", "ends")
    ]
    return [["<", _BLANK, "/?", _BLANK, *name, _BLANK, ">"], *spoken]


def _beginnings(spellings: Iterable[list[str]]) -> str:
    """A pattern of every beginning of the spellings, in which those that begin alike are one.

    A pattern that lists each spelling of its own takes four times as long to compile, at every
    start.
    """
    rests: dict[str, list[list[str]]] = {}
    for atom, *rest in spellings:
        rests.setdefault(atom, [])
        if rest:
            rests[atom].append(rest)
    choices = [
        f"{atom}(?:{_beginnings(after)})?" if after else atom for atom, after in rests.items()
    ]
    return "|".join(choices)


@functools.cache
def _tag_patterns(exact: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Returns the patterns of a tag, and of its beginning at the end of a text."""
    if exact:
        spellings = [[*map(re.escape, tag)] for tag in _TAGS]
        return re.compile("|".join(map(re.escape, _TAGS))), re.compile(
            rf"(?:{_beginnings(spellings)})\Z"
        )
    spellings = [atoms for stage in Stage for atoms in _spellings(stage.value)]
    tags = "|".join(map("".join, spellings))
    begun = _beginnings([*atoms, _WRAP_BEGUN] for atoms in spellings)
    return (
        re.compile(rf"{_WRAP}(?:{tags}){_WRAP_AGAIN}", re.I | re.A),
        re.compile(rf"(?!\Z){_WRAP}(?:{begun})?\Z", re.I | re.A),
    )


_NAME = re.compile("|".join(Stage), re.I | re.A)
_CLOSES = re.compile(r"/|\bends\b", re.I | re.A)

# `**CONCLUSION:**`, `## Conclusion`, `CONCLUSION:` at the beginning of a line.
_HEADING = re.compile(
    r"""(?<![^\s>)*_])(?P<hash>\#{1,6}[ \t]*)?(?P<wrap>\*{1,3}|_{1,3})?conclusion
    (?:
        [ \t]*:(?P<closed>[ \t]*(?P=wrap))?       # **Conclusion:** and **Conclusion: 6**
      | (?P=wrap)[ \t]*:                          # **Conclusion**:
      | [ \t]*:                                   # Conclusion:
      | (?:(?<=n)|(?P=wrap))[ \t]*(?P<alone>$)    # a line of its own
    )""",
    re.I | re.M | re.X | re.A,
)
_HEADING_BEGINNING = re.compile(
    r"(?:\#{1,6}[ \t]*)?(?:\*{1,3}|_{1,3})?(?:"
    + _beginnings([[*"conclusion", r"[ \t:*_]*"]])
    + ")?",
    re.I | re.A,
)

_QUOTES = "\"'“”‘’«»„`「『《("
# What comes before a conclusion on the same line: the end of a sentence, a colon, "the answer is".
_LEAD_IN = re.compile(
    r"(?:[.!?:;,=…。！？：；，)\]*]|\b(?:is|are|so|thus|hence|therefore))\s*\Z", re.I
)
_MOST_MARKS = 32  # tags that are held back; nobody quotes more of them
_LEAD = 80  # characters before a tag that are looked at


def _joined(events: list[StageEvent]) -> list[StageEvent]:
    """The events with adjacent text of one stage as one."""
    joined: list[StageEvent] = []
    pieces: list[Text] = []
    for event in (*events, None):
        if pieces and not (isinstance(event, Text) and event.stage == pieces[0].stage):
            joined.append(Text(pieces[0].stage, "".join(piece.text for piece in pieces)))
            pieces = []
        if isinstance(event, Text):
            pieces.append(event)
        elif event is not None:
            joined.append(event)
    return joined


@dataclass
class _HeldTag:
    """A tag inside a stage that is text if the stage's own closing tag still comes."""

    start: int
    """Where it stands in the text that is held back."""
    end: int
    stage: Stage
    opens: bool
    heading: bool
    begins_line: bool
    lead: str
    """The stage's text before it, its last characters."""

    @property
    def quoted(self) -> bool:
        return self.lead[-1:] in _QUOTES and self.lead != ""


class StageParser:
    """Turns generated text into stages while it arrives, in pieces of any length.

    `feed` takes the next piece and returns the events that became certain; `finish` ends the text.
    The stages are the same however the text is cut into pieces.

    Only the generated text is ever fed, so a tag in a question opens nothing. Inside a stage a tag
    is text, as in a caption that quotes a sign that says `</CONCLUSION>`, with two exceptions: the
    stage's own closing tag, and, at the beginning of a line, the opening tag of the stage that
    follows, which means that the closing tag was forgotten. Outside a stage only an opening tag
    means anything. With `exact`, that is all: what training data must look like.

    Without it, what a model wrote is read as a person reads it:

    - Tags may be in any case, have blanks in them, and stand in Markdown's bold. A line that begins
      with `**CONCLUSION:**`, `CONCLUSION:` or `## Conclusion` opens the conclusion.
    - A stage that was opened as trained is closed as trained: an HTML `</caption>` is text.
    - A stage whose closing tag never comes ends where another one begins, also amid a line, and
      also if stages between were left out. As long as the closing tag may come, the text from such
      a tag on is held back: it would be a quotation. It is one, too, where it stands in quotes.
    - Another stage's tag at the end of a stage stands for its closing tag.
    - A conclusion ends where the model begins anew, with a line that opens the summary or another
      conclusion.
    - A piece of a tag at the end, where the token limit came, is no text.

    Whatever happens, `text` and `written` of all events, in order, are what was fed.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self.stage: Stage | None = None
        """The stage that is open now."""
        self.held = ""
        """Text of the open stage, unless its closing tag never comes."""
        self._exact = exact
        self._tag_pattern, self._beginning = _tag_patterns(exact)
        self._pending = ""  # may turn out to be the beginning of a tag
        self._line_is_blank = True  # nothing but white space since the last line break
        self._marks: list[_HeldTag] = []  # in `held`
        self._lead = ""  # the last characters of the stage's text
        self._as_trained = True  # how the stage was opened
        self._wrap = ""  # Markdown's bold that began with the stage, as in **CONCLUSION: 6**
        self._piece = ""  # of a tag, at the end of the text

    def feed(self, text: str) -> list[StageEvent]:
        """Returns the events that `text` made certain, oldest first; adjacent text is joined."""
        self._pending += text
        events: list[StageEvent] = []
        self._read(events, final=False)
        return _joined(events)

    def finish(self) -> list[StageEvent]:
        """Returns what was held back, and the end of a stage that is still open."""
        events: list[StageEvent] = []
        self._read(events, final=True)
        while self.stage is not None:
            self._pending = self._end_open_stage(self.stage, events)
            self._read(events, final=True)
        return _joined(events)

    def _read(self, events: list[StageEvent], *, final: bool) -> None:
        """Reads the pending text as far as it is certain; all of it if it is `final`."""
        pending, done = self._pending, 0
        wait = len(pending) if final else self._begun(0)
        tag, heading = self._tag_pattern.search(pending), self._heading(0)
        while True:
            if tag is not None and tag.start() < done:
                tag = self._tag_pattern.search(pending, done)
            if heading is not None and (
                heading.start() < done or not self._opens(heading, done, tag)
            ):
                heading = self._heading(max(done, heading.start() + 1))
                continue
            found = tag if heading is None or (tag and tag.start() <= heading.start()) else heading
            if found is heading and heading is not None and not final:
                wait = min(wait, self._may_go_on(heading))
            if found is None or found.start() + (found is heading) > wait:
                break
            self._text(pending[done : found.start()], events)
            done, written = found.end(), found.group()
            if not final and wait < done:
                wait = self._begun(done)
            if found is heading:
                self._tag(written, Stage.CONCLUSION, True, events, heading=True)
                if self.stage is Stage.CONCLUSION and not found["closed"]:
                    self._wrap = found["wrap"] or ""
            else:
                name = _NAME.search(written)
                assert name is not None
                stage = Stage(name.group().lower())
                self._tag(written, stage, _CLOSES.search(written) is None, events)
        self._pending = pending[done:]
        wait = len(self._pending) if final else self._begun_heading(wait - done)
        if final and self.stage is not None and not self._exact:
            wait = self._cut_off()
        self._text(self._pending[:wait], events)
        self._piece = self._pending[wait:] if final else ""
        self._pending = "" if final else self._pending[wait:]

    def _cut_off(self) -> int:
        """Where the pending text ends in a piece of a tag, such as `</CONC`."""
        begun = self._beginning.search(self._pending)
        if begun and ("<" in begun.group() or len(begun.group()) > len("(Here")):
            return begun.start()
        if self._wrap and self._pending.endswith(self._wrap):
            return len(self._pending) - len(self._wrap)
        return len(self._pending)

    def _begun(self, start: int) -> int:
        """Where the pending text ends in what a later piece may complete to a tag."""
        begun = self._beginning.search(self._pending, start)
        return begun.start() if begun else len(self._pending)

    def _begun_heading(self, end: int) -> int:
        """Where the pending text ends in what may become a heading; else `end`."""
        _, broken, line = self._pending.rpartition("\n")
        head = line.lstrip()
        begins_line = broken or self._line_is_blank
        if head and not self._exact and begins_line and _HEADING_BEGINNING.fullmatch(head):
            return min(end, len(self._pending) - len(head))
        return end

    def _heading(self, start: int) -> re.Match[str] | None:
        return None if self._exact else _HEADING.search(self._pending, start)

    def _may_go_on(self, heading: re.Match[str]) -> int:
        """Where the pending text ends in a heading that a later piece may add to."""
        goes_on = _HEADING_BEGINNING.fullmatch(self._pending, heading.start())
        return heading.start() if goes_on else len(self._pending)

    def _opens(self, heading: re.Match[str], done: int, tag: re.Match[str] | None) -> bool:
        """Whether a heading in the pending text, read up to `done`, may open the conclusion.

        What stands behind the next tag is looked at again behind it.
        """
        if tag is not None and tag.start() <= heading.start():
            return True
        _, broken, line = self._pending[done : heading.start()].rpartition("\n")
        begins_line = not line.strip() and (broken or self._line_is_blank)
        named = heading["hash"] or heading["wrap"] or heading["alone"] is None
        return bool(begins_line and named) and self.stage is not Stage.CONCLUSION

    def _text(self, text: str, events: list[StageEvent]) -> None:
        if not text:
            return
        line = text.rpartition("\n")[2]
        blank_before = self._line_is_blank or "\n" in text
        self._line_is_blank = blank_before and not line.strip()
        self._lead = (self._lead + text)[-_LEAD:]
        if self._marks:
            self.held += text
            if text.strip() and not any(map(self._may_count, self._marks)):
                self._release(events)
        else:
            self._emit(text, events)

    def _emit(self, text: str, events: list[StageEvent]) -> None:
        if text:
            events.append(Text(self.stage, text))

    def _forget_first_mark(self, events: list[StageEvent]) -> None:
        start = self._marks[1].start
        text, self.held = self.held[:start], self.held[start:]
        del self._marks[0]
        for mark in self._marks:
            mark.start -= start
            mark.end -= start
        self._emit(text, events)

    def _release(self, events: list[StageEvent]) -> None:
        """What was held back is the stage's text."""
        text, self.held = self.held, ""
        self._marks.clear()
        self._emit(text, events)

    def _tag(
        self,
        written: str,
        stage: Stage,
        opens: bool,
        events: list[StageEvent],
        *,
        heading: bool = False,
    ) -> None:
        as_trained = written in _TAGS
        note = "" if as_trained else f"its tag was written {written.strip()}"
        if self.stage is None:
            if opens:
                self._open(stage, note, written, events)
            else:
                self._text(written, events)
        elif stage is self.stage and not opens and (as_trained or not self._as_trained):
            self._release(events)
            self._close(events, by_tag=True, note=note, written=written)
        elif opens and self._line_is_blank and not heading and self._ends_stage(stage, as_trained):
            self._end_without_tag(events)
            self._open(stage, note, written, events)
        elif self._exact:
            self._text(written, events)
        else:
            start = len(self.held)
            mark = _HeldTag(
                start,
                start + len(written),
                stage,
                opens,
                heading,
                self._begins_line(),
                self._lead,
            )
            self._marks.append(mark)
            self.held += written
            self._line_is_blank = False
            self._lead = (self._lead + written)[-_LEAD:]
            if len(self._marks) > _MOST_MARKS:
                self._forget_first_mark(events)

    def _ends_stage(self, opened: Stage, as_trained: bool) -> bool:
        """Whether a line that opens `opened` ends the open stage, whatever comes later."""
        assert self.stage is not None
        if opened is self.stage.following:
            return as_trained or not self._as_trained
        if self._exact:
            return False
        return self.stage is Stage.CONCLUSION and (
            opened in (Stage.SUMMARY, Stage.CONCLUSION) or not self._as_trained
        )

    def _begins_line(self) -> bool:
        """Whether the next tag begins a line, but for Markdown, or comes right after another."""
        line = self._lead.rpartition("\n")[2]
        if self._line_is_blank or not line.strip(" \t#*_-"):
            return True
        last = self._marks[-1] if self._marks else None
        return last is not None and not last.opens and not self.held[last.end :].strip()

    def _open(self, stage: Stage, note: str, written: str, events: list[StageEvent]) -> None:
        events.append(Opened(stage, note, written))
        self.stage = stage
        self._line_is_blank = True
        self._lead = self._wrap = ""
        self._as_trained = not note

    def _close(self, events: list[StageEvent], *, by_tag: bool, note: str, written: str) -> None:
        assert self.stage is not None
        events.append(Closed(self.stage, by_tag, note, written))
        self.stage = None
        self._line_is_blank = True

    def _end_without_tag(self, events: list[StageEvent]) -> None:
        """Ends the open stage, whose closing tag never came."""
        assert self.stage is not None
        last = self._marks[-1] if self._marks else None
        piece, self._piece = self._piece, ""
        note = "a tag was cut off" if "<" in piece or "(" in piece else ""
        written = ""
        if last is not None and not self.held[last.end :].strip():
            self.held, written = self.held[: last.start], self.held[last.start :]
            note = f"ended by {written.strip()}"
        self._release(events)
        self._close(events, by_tag=False, note=note, written=written + piece)

    def _end_open_stage(self, stage: Stage, events: list[StageEvent]) -> str:
        """Ends the stage that is open at the end of the text, where a person would say it ends.

        Returns the text after it.
        """
        if self._exact:
            self._close(events, by_tag=False, note="", written="")
            return ""
        for number, mark in enumerate(self._marks):
            if not self._counts(number, mark):
                continue
            rest = self.held[mark.start if mark.opens else mark.end :] + self._piece
            self._piece = ""
            written = "" if mark.opens else self.held[mark.start : mark.end]
            self.held = self.held[: mark.start]
            del self._marks[number:]
            if mark.opens:
                self._end_without_tag(events)
            else:
                self._release(events)
                self._close(
                    events,
                    by_tag=True,
                    note=f"its tag was written {written.strip()}",
                    written=written,
                )
            return rest
        self._end_without_tag(events)
        return ""

    def _may_count(self, mark: _HeldTag) -> bool:
        """Whether a tag inside the open stage means something if no closing tag comes."""
        assert self.stage is not None
        if mark.opens:
            order = list(Stage)
            return order.index(mark.stage) > order.index(self.stage)
        return mark.stage is self.stage

    def _counts(self, number: int, mark: _HeldTag) -> bool:
        """Whether a tag inside the open stage, whose closing tag never came, is no quotation."""
        if not self._may_count(mark) or mark.quoted:
            return False
        later = self._marks[number + 1 :]
        if not mark.opens:  # its own closing tag in another spelling, unless one was opened so
            return not any(m.opens and m.stage is mark.stage for m in self._marks[:number])
        content = self.held[mark.end :]
        if not content.strip():
            return False
        end = next((m for m in later if not m.opens and m.stage is mark.stage), None)
        following = next((m for m in later if end is not None and m.start >= end.end), None)
        after = "" if end is None else self.held[end.end : following.start if following else None]
        ends_there = end is not None and not after.strip()
        may_quote = self.stage is not Stage.REASONING  # a caption says what signs say
        if mark.heading:
            return True
        if mark.begins_line:
            announced = may_quote and mark.lead.rstrip().endswith((":", "："))
            return ends_there or not announced
        if may_quote:
            follows = self.stage is not None and mark.stage is self.stage.following
            return (ends_there or follows) and ends_sentence(mark.lead)
        return ends_there or _LEAD_IN.search(mark.lead) is not None


class StageRecorder:
    """Puts the records of stages together from a parser's events."""

    def __init__(self) -> None:
        self.text = ""
        """What there is of the open stage's text, with the white space around."""
        self._note = ""

    def add(self, event: StageEvent, tokens: int) -> StageRecord | None:
        """Returns the record of a stage that the event ends, of so many tokens; else None."""
        if isinstance(event, Opened):
            self.text, self._note = "", event.note
        elif isinstance(event, Text):
            self.text += event.text
        else:
            note = "; ".join(filter(None, (self._note, event.note)))
            return StageRecord(event.stage, self.text.strip(), event.by_tag, tokens, note=note)
        return None


def stages_of(text: str) -> list[StageRecord]:
    """The stages of a whole text, as `StageParser` finds them; their tokens are not counted."""
    parser, recorder = StageParser(), StageRecorder()
    found = (recorder.add(event, 0) for event in parser.feed(text) + parser.finish())
    return [record for record in found if record is not None]


def conclusion_among(records: Sequence[StageRecord]) -> StageRecord | None:
    """The stage that is the answer; None where no conclusion was written.

    Of several conclusions it is the last one that is closed and not empty, since a model that goes
    on corrects itself, and one that was cut off does not take back a whole one. If none is, it is
    the last one that is not empty, and else the last.
    """
    conclusions = [record for record in records if record.stage is Stage.CONCLUSION]
    return max(
        enumerate(conclusions),
        key=lambda each: (bool(each[1].text.strip()), each[1].closed, each[0]),
        default=(0, None),
    )[1]
