"""Encodes a conversation: the token ids that the model reads, and the kind of each token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llavacot_mlx.prompt.image_source import locate_image
from llavacot_mlx.prompt.stages import Opened, Stage, StageEvent, StageParser, Text
from llavacot_mlx.prompt.tokenizer import MAX_CHARACTERS, Tokenizer
from llavacot_mlx.rows.conversation import Conversation
from llavacot_mlx.rows.problem import ProblemKind, RowError
from llavacot_mlx.train.data.sample import Sample, TokenKind

_KINDS = {stage: TokenKind[stage.name] for stage in Stage}
# Every tag, in either spelling, ends with one of these and has none of them before its end.
_UP_TO_A_TAGS_END = re.compile(r"[^>)]*[>)]|[^>)]+")


def encode(
    conversation: Conversation,
    tokenizer: Tokenizer,
    images: Path | None,
    *,
    images_anywhere: bool = False,
) -> Sample:
    """Encodes a conversation, with a loss on every answer and on the end of its turn.

    Everything else is masked: questions, the image token, all headers, and the line breaks between
    the assistant's header and its answer, which belong to the prompt. The ids are those of
    inference: the prompt of a question, then the generated ids. As in `Tokenizer.next_turn`, each
    answer is tokenized on its own, whereas `Tokenizer.prompt` tokenizes an earlier answer together
    with the line breaks before it. Both give the same ids unless an answer begins with white space,
    which `parse_row` removes.

    `images` is the folder that the image path is relative to, and in which the image has to be
    without `images_anywhere`. Raises RowError for a conversation that is far too long to be read.
    """
    turns = conversation.turns
    characters = sum(len(turn.text) for turn in turns)
    if characters > MAX_CHARACTERS:
        detail = f"{characters} characters, and {MAX_CHARACTERS} are the most"
        raise RowError(conversation.where, ProblemKind.TOO_LONG, detail)
    first = next(index for index, turn in enumerate(turns) if turn.role == "assistant")
    ids = tokenizer.prompt(turns[:first])
    token_kinds = [np.full(len(ids), TokenKind.MASKED, dtype=np.uint8)]
    for index in range(first, len(turns), 2):
        answer = turns[index].text
        answer_ids = tokenizer.encode(answer)
        # `next_turn` begins with the end of the answer's turn, which has a loss.
        following = tokenizer.next_turn(turns[index + 1].text if index + 1 < len(turns) else "")
        if index + 1 == len(turns):
            following = following[:1]
        ids += answer_ids + following
        after = np.full(len(following), TokenKind.MASKED, dtype=np.uint8)
        after[0] = TokenKind.TAGS
        token_kinds += [answer_token_kinds(answer, answer_ids, tokenizer), after]
    image = None
    if conversation.image is not None:
        image = locate_image(conversation.image, images or Path(), anywhere=images_anywhere)
    return Sample(
        conversation.where,
        np.array(ids, dtype=np.int32),
        np.concatenate(token_kinds),
        image,
    )


def answer_token_kinds(answer: str, ids: list[int], tokenizer: Tokenizer) -> np.ndarray:
    """(tokens,) uint8: the kind of each token of an answer, by its first non-space character.

    So a token is TAGS if it holds the end of a tag and line breaks or text after it, or a space and
    the beginning of a tag.
    """
    stream = tokenizer.stream()
    offsets = []
    start = 0  # of the token, or of the character that it continues
    for token_id in ids:
        text = stream.push(token_id)
        blank = len(text) - len(text.lstrip())
        offsets.append(start + (blank if blank < len(text) else 0))
        start += len(text)
    return _character_kinds(answer)[offsets]


def _character_kinds(answer: str) -> np.ndarray:
    """(characters,) uint8: the kind of the stage that each character is in, or TAGS."""
    token_kinds = np.full(len(answer), TokenKind.TAGS, dtype=np.uint8)
    done = 0  # characters that the events so far account for
    for event, read in _events(answer):
        if isinstance(event, Text):
            if event.stage is not None:
                token_kinds[done : done + len(event.text)] = _KINDS[event.stage]
            done += len(event.text)
        elif isinstance(event, Opened) or event.by_tag:
            done = read  # the last character that was read completed the tag
    return token_kinds


def _events(answer: str) -> Iterator[tuple[StageEvent, int]]:
    """Yields the parser's events, each with the number of characters read by then."""
    parser = StageParser(exact=True)
    read = 0
    for piece in _UP_TO_A_TAGS_END.findall(answer):
        read += len(piece)
        for event in parser.feed(piece):
            yield event, read
    for event in parser.finish():
        yield event, read
