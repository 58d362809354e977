"""Generated ids are read as the stages of their text, however the text was cut into tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama_vocabulary import LLAMA
from stage_texts import TEXTS, joined
from tokenizers.pre_tokenizers import ByteLevel

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.demo import model_path
from llavacot_mlx.prompt.stages import Closed, Opened, Stage, StageEvent, StageParser, Text
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.trace.stage_reader import StageReader

SUMMARY, CAPTION, REASONING, CONCLUSION = Stage
SPELLING = ByteLevel(add_prefix_space=False, use_regex=False)
LONGEST_TOKEN = 16  # bytes; there are longer ones, of which no tag or character knows

Found = list[tuple[Stage, str, bool]]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and all the ways to write a text with its tokens."""

    tokenizer: Tokenizer
    ordinary: dict[str, int]
    """Ids by the token's bytes, each byte written as one visible character."""
    special: list[int]
    """Ids of the special tokens that end no turn."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, folder: Path) -> Vocabulary:
        file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        special = {token["id"] for token in file["added_tokens"]}
        ordinary = file["model"]["vocab"]
        assert not special & set(ordinary.values())
        return cls(tokenizer, ordinary, sorted(special - tokenizer.stop_ids))

    @property
    def stops(self) -> list[int]:
        """Ids of the tokens that end a turn."""
        return sorted(self.tokenizer.stop_ids)

    def spelled(self, text: str) -> str:
        """The bytes of `text`, each written as one visible character."""
        return "".join(piece for piece, _ in SPELLING.pre_tokenize_str(text))

    def cut(self, text: str, choices: Sequence[int]) -> list[int]:
        """Cuts `text` into tokens: each choice picks among the tokens that the rest starts with.

        0 is the longest token. A character or a tag may be cut anywhere.
        """
        rest, ids, turn = self.spelled(text), [], cycle(choices)
        while rest:
            lengths = range(min(LONGEST_TOKEN, len(rest)), 0, -1)
            tokens = [rest[:length] for length in lengths if rest[:length] in self.ordinary]
            token = tokens[next(turn) % len(tokens)]
            ids.append(self.ordinary[token])
            rest = rest[len(token) :]
        return ids

    def in_bytes(self, text: str) -> list[int]:
        """Returns one token per byte."""
        return [self.ordinary[byte] for byte in self.spelled(text)]

    def in_characters(self, text: str) -> list[int]:
        """Encodes each character on its own."""
        return [token for character in text for token in self.tokenizer.encode(character)]

    def ways(self, text: str) -> list[list[int]]:
        """Returns the tokenizer's own encoding of `text`, and two other ways."""
        return [self.tokenizer.encode(text), self.in_bytes(text), self.in_characters(text)]

    def tokens(self, wanted: Callable[[str], bool]) -> dict[str, int]:
        """The ordinary tokens of whole characters whose text is `wanted`: ids by their texts."""
        decoded = ((self.tokenizer.decode([token]), token) for token in self.ordinary.values())
        return {text: token for text, token in decoded if "\ufffd" not in text and wanted(text)}


@pytest.fixture(scope="module", params=["demo", *LLAMA])
def vocabulary(
    request: pytest.FixtureRequest, llama: Callable[[str], tuple[Path, Tokenizer]]
) -> Vocabulary:
    """The vocabularies of the demo model, of the stand-in for Llama, and of Llama if available."""
    if request.param in LLAMA:
        folder, tokenizer = llama(request.param)
        return Vocabulary.of(tokenizer, folder)
    return Vocabulary.of(Tokenizer.load(model_path(), load_config(model_path())), model_path())


def pushed(reader: StageReader, ids: Sequence[int]) -> list[StageEvent]:
    """The events of `ids` and of the end, adjacent text of one stage joined."""
    return joined([*(event for token in ids for event in reader.push(token)), *reader.finish()])


def read(vocabulary: Vocabulary, ids: Sequence[int]) -> StageReader:
    reader = StageReader(vocabulary.tokenizer)
    pushed(reader, ids)
    return reader


def found(reader: StageReader) -> Found:
    return [(record.stage, record.text, record.closed) for record in reader.records]


def events_of(text: str) -> list[StageEvent]:
    """Returns the parser's events for the whole text at once."""
    parser = StageParser()
    return joined([*parser.feed(text), *parser.finish()])


def stages_of(text: str) -> Found:
    """Returns the stages that the parser finds in the whole text at once."""
    stages: Found = []
    for event in events_of(text):
        if isinstance(event, Opened):
            stages.append((event.stage, "", False))
        elif isinstance(event, Text) and event.stage is not None:
            stages[-1] = (event.stage, event.text.strip(), False)
        elif isinstance(event, Closed):
            stages[-1] = (event.stage, stages[-1][1], event.by_tag)
    return stages


SOME = settings(deadline=None, max_examples=60)
CHOICES = st.lists(st.integers(0, 7), min_size=1, max_size=20)
POSITIONS = st.integers(0, 200)


@SOME
@given(text=TEXTS, choices=CHOICES)
@example(text="<SUMMARY> a </SUMMARY>\n\n<CAPTION>🙂</CAPTION>\n", choices=[0, 5, 1])
@example(text="<SUMMARY>a\n<CAPTION>這</CAPT", choices=[3])
@example(text="(Here begins the SUMMARY stage)\n\na(Here ends the SUMMARY stage)\n\n", choices=[0])
def test_any_tokenisation_gives_the_same_stages(
    text: str, choices: list[int], vocabulary: Vocabulary
) -> None:
    """Covers the tokenizer's own encoding, one token per byte, per character, and any mixture."""
    for ids in [*vocabulary.ways(text), vocabulary.cut(text, choices)]:
        reader = StageReader(vocabulary.tokenizer)
        assert pushed(reader, ids) == events_of(text)
        assert found(reader) == stages_of(text)
        assert reader.text == text
        assert reader.token_ids == ids
        assert not reader.turn_ended


@SOME
@given(text=TEXTS, cuts=st.lists(POSITIONS, max_size=8))
def test_pieces_of_text_that_are_encoded_one_by_one(
    text: str, cuts: list[int], vocabulary: Vocabulary
) -> None:
    """Other programs encode stages separately, so tokens meet where no tokenizer would cut."""
    positions = sorted(cut % (len(text) + 1) for cut in cuts)
    ids: list[int] = []
    for begin, end in zip([0, *positions], [*positions, len(text)], strict=True):
        ids += vocabulary.tokenizer.encode(text[begin:end])
    reader = read(vocabulary, ids)
    assert found(reader) == stages_of(text)
    assert reader.text == text


@SOME
@given(ids=st.lists(st.integers(0, 2**20), max_size=40))
def test_any_ids_at_all(ids: list[int], vocabulary: Vocabulary) -> None:
    """Ids as of a random model: stray bytes, special tokens, and sometimes the end of the turn."""
    size = len(vocabulary.ordinary) + len(vocabulary.special)
    ids = [token % size for token in ids]
    ends = [position for position, token in enumerate(ids) if token in vocabulary.stops]
    text = vocabulary.tokenizer.decode(ids[: ends[0]] if ends else ids)
    reader = StageReader(vocabulary.tokenizer)
    assert pushed(reader, ids) == events_of(text)
    assert reader.text == text
    assert found(reader) == stages_of(text)
    assert reader.turn_ended == bool(ends)


@SOME
@given(text=TEXTS, choices=CHOICES, lost=POSITIONS, end=POSITIONS, position=POSITIONS)
def test_a_reader_goes_on_where_another_was(
    text: str, choices: list[int], lost: int, end: int, position: int, vocabulary: Vocabulary
) -> None:
    """A new reader continues within a tag, a character, a broken one, or after the turn's end."""
    ids = vocabulary.cut(text, choices)
    del ids[lost : lost + 1]
    ids.insert(end, vocabulary.stops[0])  # behind all of them, more often than not
    position %= len(ids) + 1
    whole, part = StageReader(vocabulary.tokenizer), StageReader(vocabulary.tokenizer)
    before = [event for token in ids[:position] for event in part.push(token)]
    reader = StageReader.after(vocabulary.tokenizer, ids[:position])
    assert reader.next_stage == part.next_stage
    assert reader.text == part.text
    assert reader.turn_ended == part.turn_ended
    assert joined([*before, *pushed(reader, ids[position:])]) == pushed(whole, ids)
    assert reader.records == whole.records
    assert reader.text == whole.text
    assert reader.token_ids == whole.token_ids
    assert reader.turn_ended == whole.turn_ended
    assert reader.next_stage == whole.next_stage


@SOME
@given(text=TEXTS, choices=CHOICES, more=st.lists(st.tuples(POSITIONS, POSITIONS), max_size=3))
@example(text="<SUMMARY>a</SUMMARY>\n\n<CAPTION>b</CAPTION> 3", choices=[0], more=[(3, 1)])
@example(text="<SUMMARY>a\n<CAPTION>b", choices=[7], more=[])
def test_every_token_is_counted_once(
    text: str, choices: list[int], more: list[tuple[int, int]], vocabulary: Vocabulary
) -> None:
    """A stage has the tokens after the stage before it, up to the one that made its end certain.

    That is the token in which its closing tag becomes whole, for a forgotten one the opening tag
    of the next stage; for a stage that is open at the end, the last token. Special tokens count.
    Where the end makes several stages certain, the first of them has the tokens.
    """
    ids = vocabulary.cut(text, choices)
    for position, which in more:
        ids.insert(position % (len(ids) + 1), vocabulary.special[which % len(vocabulary.special)])
    ends: list[int] = []
    for count in range(1, len(ids) + 1):
        events = StageParser().feed(vocabulary.tokenizer.decode(ids[:count]))
        closed = sum(isinstance(event, Closed) for event in events)
        ends += [count] * (closed - len(ends))
    reader = read(vocabulary, ids)
    ends += [len(ids)] * (len(reader.records) - len(ends))
    begins = [0, *ends[:-1]] if ends else []
    counts = [record.tokens for record in reader.records]
    assert counts == [end - begin for begin, end in zip(begins, ends, strict=True)]


@SOME
@given(text=TEXTS, choices=CHOICES, position=POSITIONS, which=POSITIONS)
@example(text="<SUMMARY>a</SUMMARY>", choices=[0], position=2, which=0)
@example(text="<SUMMARY>🙂</SUMMARY>", choices=[9], position=11, which=0)
def test_nothing_after_the_end_of_the_turn_is_read(
    text: str, choices: list[int], position: int, which: int, vocabulary: Vocabulary
) -> None:
    """The end of the turn may come within a character, a tag or a stage, which then stays unclosed.

    The reader once went on with the tokens after it.
    """
    ids = vocabulary.cut(text, choices)
    position %= len(ids) + 1
    before, stop = ids[:position], vocabulary.stops[which % len(vocabulary.stops)]
    reader = StageReader.after(vocabulary.tokenizer, before)
    assert not reader.turn_ended
    assert reader.push(stop) == []
    assert reader.turn_ended
    assert [reader.push(token) for token in ids[position:]] == [[]] * len(ids[position:])
    reader.finish()
    written = vocabulary.tokenizer.decode(before)
    assert reader.text == written
    assert reader.token_ids == [*before, stop]
    assert found(reader) == stages_of(written)


@SOME
@given(text=TEXTS, choices=CHOICES, more=st.lists(st.tuples(POSITIONS, POSITIONS), min_size=1))
def test_other_special_tokens_change_nothing(
    text: str, choices: list[int], more: list[tuple[int, int]], vocabulary: Vocabulary
) -> None:
    """Other special tokens are not text, do not split a tag or a character, and end no turn."""
    ids = vocabulary.cut(text, choices)
    for position, which in more:
        ids.insert(position % (len(ids) + 1), vocabulary.special[which % len(vocabulary.special)])
    reader = StageReader(vocabulary.tokenizer)
    assert pushed(reader, ids) == events_of(text)
    assert found(reader) == stages_of(text)
    assert reader.text == text
    assert not reader.turn_ended


GOOD = (
    "<SUMMARY> a </SUMMARY>\n\n<CAPTION> b </CAPTION>\n\n"
    "<REASONING> c\nd </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)
ANSWERS: dict[str, tuple[str, Found]] = {
    "good": (
        GOOD,
        [
            (SUMMARY, "a", True),
            (CAPTION, "b", True),
            (REASONING, "c\nd", True),
            (CONCLUSION, "2", True),
        ],
    ),
    "spoken": (
        "(Here begins the SUMMARY stage)\n\na\n\n(Here ends the SUMMARY stage)\n\n"
        "(Here begins the CAPTION stage) b (Here ends the CAPTION stage)",
        [(SUMMARY, "a", True), (CAPTION, "b", True)],
    ),
    "both spellings in one stage": (
        "(Here begins the SUMMARY stage)a</SUMMARY><CAPTION>b(Here ends the CAPTION stage)",
        [(SUMMARY, "a", True), (CAPTION, "b", True)],
    ),
    "no stage": ("Two.\n\n", []),
    "nothing": ("", []),
    "nothing in a stage": ("<SUMMARY></SUMMARY>", [(SUMMARY, "", True)]),
    "not closed": (
        "<SUMMARY>a</SUMMARY>\n<CAPTION> b",
        [(SUMMARY, "a", True), (CAPTION, "b", False)],
    ),
    "not closed, and the next begins a line": (
        "<CAPTION> b\n\n<REASONING> c </REASONING>",
        [(CAPTION, "b", False), (REASONING, "c", True)],
    ),
    "not closed, and the next is indented": (
        "<CAPTION> b\n  <REASONING> c </REASONING>",
        [(CAPTION, "b", False), (REASONING, "c", True)],
    ),
    "none closed": (
        "<SUMMARY>a\n<CAPTION>b\n<REASONING>c\n<CONCLUSION>d",
        [
            (SUMMARY, "a", False),
            (CAPTION, "b", False),
            (REASONING, "c", False),
            (CONCLUSION, "d", False),
        ],
    ),
    "cut amid the closing tag": ("<SUMMARY>a</SUMM", [(SUMMARY, "a", False)]),
    "cut amid the opening tag": ("<SUMMARY>a</SUMMARY><CAPT", [(SUMMARY, "a", True)]),
    "repeated": (
        "<SUMMARY>a</SUMMARY><SUMMARY>b</SUMMARY>\n<SUMMARY>c",
        [(SUMMARY, "a", True), (SUMMARY, "b", True), (SUMMARY, "c", False)],
    ),
    "reordered": (
        "<CONCLUSION>d</CONCLUSION>\n\n<SUMMARY>a</SUMMARY>\n\n<REASONING>c</REASONING>",
        [(CONCLUSION, "d", True), (SUMMARY, "a", True), (REASONING, "c", True)],
    ),
    "missing": (
        "<SUMMARY>a</SUMMARY>\n\n<CONCLUSION>d</CONCLUSION>",
        [(SUMMARY, "a", True), (CONCLUSION, "d", True)],
    ),
    "nested": (
        "<CAPTION>a <REASONING>b</REASONING> c</CAPTION>",
        [(CAPTION, "a <REASONING>b</REASONING> c", True)],
    ),
    "nested in itself": (
        "<CAPTION>a\n<CAPTION>b</CAPTION>c</CAPTION>",
        [(CAPTION, "a\n<CAPTION>b", True)],
    ),
    "a tag in quotes": (
        '<CAPTION>A sign: "</CONCLUSION>".\n“<SUMMARY>”</CAPTION>',
        [(CAPTION, 'A sign: "</CONCLUSION>".\n“<SUMMARY>”', True)],
    ),
    "closed but never opened": ("a</SUMMARY>\n<CAPTION>b</CAPTION>", [(CAPTION, "b", True)]),
    "what looks like tags": ("<sum>a</sum><SUMMARIES>b(Here is the SUMMARY stage)", []),
    "special tokens' strings": (
        "<SUMMARY>It says <|eot_id|>, <|end_of_text|> and <|image|>.</SUMMARY><|eom_id|>"
        "<CAPTION>b</CAPTION>",
        [
            (SUMMARY, "It says <|eot_id|>, <|end_of_text|> and <|image|>.", True),
            (CAPTION, "b", True),
        ],
    ),
    "letters of many bytes": (
        "<SUMMARY>🙂</SUMMARY>這<CAPTION>👩\u200d👩\u200d👧 e\u0301 \ufffd</CAPTION>🙂",
        [(SUMMARY, "🙂", True), (CAPTION, "👩\u200d👩\u200d👧 e\u0301 \ufffd", True)],
    ),
}


@pytest.mark.parametrize(("text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer(text: str, expected: Found, vocabulary: Vocabulary) -> None:
    for ids in vocabulary.ways(text):
        reader = read(vocabulary, ids)
        assert found(reader) == expected
        assert reader.text == text
        assert not reader.turn_ended


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("<SUMMARY>a</SUMMARY>\n\n<CAPTION> b", (CAPTION, "b", False)),
        ("<SUMMARY>a</SUMMARY>\n\n<CAPTION>", (CAPTION, "", False)),
        ("<SUMMARY>a</SUMMARY>\n\n<CAPTION>b</CAPTION", (CAPTION, "b", False)),
        ("<SUMMARY>a</SUMMARY>\n\n<CAPTION", (SUMMARY, "a", True)),
        ("<SUMMARY>a</SUMMARY>", (SUMMARY, "a", True)),
    ],
)
def test_a_turn_that_ends_in_a_stage(
    text: str, last: tuple[Stage, str, bool], vocabulary: Vocabulary
) -> None:
    """A turn that ends within a stage leaves it open, whatever would have followed."""
    for ids in vocabulary.ways(text):
        for stop in vocabulary.stops:
            rest = [*vocabulary.tokenizer.encode("></CAPTION>"), stop]
            reader = read(vocabulary, [*ids, stop, *rest])
            assert found(reader)[-1] == last
            assert reader.text == text
            assert reader.turn_ended


@pytest.mark.parametrize("mark", [">", ")"])
def test_text_in_the_token_that_ends_a_tag(mark: str, vocabulary: Vocabulary) -> None:
    """Covers every token that ends a tag and has more text, most often line breaks."""
    encode = vocabulary.tokenizer.encode
    opening, closing = {
        ">": ("<SUMMARY", "</SUMMARY"),
        ")": ("(Here begins the SUMMARY stage", "(Here ends the SUMMARY stage"),
    }[mark]
    before = encode(f"{opening}{mark} a {closing}")
    after = encode(f"<CAPTION>b{CAPTION.closing}")
    opened, closed = encode(opening), encode(f"b{closing}{mark}")
    tokens = vocabulary.tokens(lambda text: text.startswith(mark) and len(text) > 1)
    if len(vocabulary.ordinary) > 1000:
        assert {f"{mark}\n", f"{mark}\n\n", f"{mark}."} <= set(tokens)
    for text, token in tokens.items():
        reader = read(vocabulary, [*before, token, *after])
        assert found(reader) == [(SUMMARY, "a", True), (CAPTION, "b", True)]
        assert reader.records[0].tokens == len(before) + 1
        assert reader.text == f"{opening}{mark} a {closing}{text}<CAPTION>b</CAPTION>"

        reader = read(vocabulary, [*opened, token, *closed])
        assert found(reader) == [(SUMMARY, f"{text[1:]}b".strip(), True)]


def test_text_in_the_token_that_begins_a_tag(vocabulary: Vocabulary) -> None:
    """Covers every token that ends a stage's text and begins its closing tag."""
    encode = vocabulary.tokenizer.encode
    before, closings = encode("<SUMMARY>a"), ("</SUMMARY>", "(Here ends the SUMMARY stage)")
    for begun in ("<", "</", "("):
        (closing,) = (closing for closing in closings if closing.startswith(begun))
        rest = encode(closing.removeprefix(begun))
        tokens = vocabulary.tokens(lambda text, begun=begun: text.endswith(begun))
        assert begun in tokens or begun == "</"
        for text, token in tokens.items():
            reader = read(vocabulary, [*before, token, *rest])
            assert found(reader) == [(SUMMARY, f"a{text.removesuffix(begun)}".strip(), True)]


def test_line_breaks_in_a_token_with_text(vocabulary: Vocabulary) -> None:
    """Covers every token that ends a line, so that the next stage's tag ends this stage."""
    encode = vocabulary.tokenizer.encode
    before, after = encode("<CAPTION> b"), encode("<REASONING> c </REASONING>")
    tokens = vocabulary.tokens(lambda text: text.endswith("\n"))
    assert {"\n", "\n\n", ".\n"} <= set(tokens)
    for text, token in tokens.items():
        reader = read(vocabulary, [*before, token, *after])
        assert found(reader) == [(CAPTION, f"b{text}".strip(), False), (REASONING, "c", True)]


@pytest.mark.parametrize("name", LLAMA)
def test_a_token_that_ends_one_tag_and_begins_another(
    name: str, llama: Callable[[str], tuple[Path, Tokenizer]]
) -> None:
    tokenizer = llama(name)[1]
    encode = tokenizer.encode
    (both,) = encode("></")
    for text, expected in {
        "<SUMMARY|SUMMARY>": [(SUMMARY, "", True)],
        "<SUMMARY>a</SUMMARY|SUMMARY><CAPTION>b": [(SUMMARY, "a", True), (CAPTION, "b", False)],
        "<SUMMARY|CAPTION>b</SUMMARY>": [(SUMMARY, "</CAPTION>b", True)],
    }.items():
        first, second = text.split("|")
        reader = StageReader.after(tokenizer, [*encode(first), both, *encode(second)])
        reader.finish()
        assert found(reader) == expected
        assert reader.text == text.replace("|", "></")


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        (GOOD, [*Stage, None]),
        ("Well,\n<REASONING>c", [SUMMARY, REASONING]),
        (
            "<CONCLUSION>d</CONCLUSION><CAPTION>b</CAPTION>",
            [SUMMARY, CONCLUSION, None, CAPTION, REASONING],
        ),
    ],
    ids=["good", "begins late", "reordered"],
)
def test_which_stage_is_next(text: str, stages: list[Stage | None], vocabulary: Vocabulary) -> None:
    """The next stage is the open one or the following one: SUMMARY at first, None at last."""
    for ids in vocabulary.ways(text):
        reader = StageReader(vocabulary.tokenizer)
        seen = [reader.next_stage]
        for token in ids:
            reader.push(token)
            if reader.next_stage is not seen[-1]:
                seen.append(reader.next_stage)
        assert seen == stages
