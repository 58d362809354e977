"""Parses one row of a JSONL file into a conversation about an image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llavacot_mlx.prompt.tokenizer import Turn
from llavacot_mlx.train.data.problem import ProblemKind, RowError

_IMAGE_MARK = "<image>"
# For each of the two forms: the key of the list of turns, and a turn's keys of role and text.
_FORMS = (("conversations", "from", "value"), ("messages", "role", "content"))
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Conversation:
    """Questions and answers in turn, after at most one system turn; the last turn is an answer."""

    where: str
    """Such as `train.jsonl, row 3`."""
    id: str
    """The row's id; empty if it has none."""
    image: str | None
    """The image path as given in the row."""
    turns: tuple[Turn, ...]
    """Stripped of white space; the image belongs to the first question."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The text of each assistant turn."""
        return tuple(turn.text for turn in self.turns if turn.role == "assistant")


def parse_row(line: str, where: str) -> Conversation:
    """Parses a row of LLaVA-CoT-100k, or a row of mlx-lm's chat format.

    That is `{"id": …, "image": …, "conversations": [{"from": "human", "value": …}, …]}`, or
    `{"messages": [{"role": …, "content": …}, …], "images": […]}`, whose content is a string or a
    list of `{"type": "text", "text": …}` and `{"type": "image"}`. `<image>` in a question marks
    the row's image and is removed. Other keys are ignored.

    Raises RowError, whose message starts with `where`.
    """

    try:
        row = json.loads(line.strip())
    except (ValueError, RecursionError) as problem:
        raise RowError(where, ProblemKind.NOT_JSON, f"not JSON: {problem}") from None
    try:
        if not isinstance(row, dict):
            raise _WrongError("expected an object with conversations or messages")
        image = _image(row)
        turns = _turns(_messages(row), image)
    except _WrongError as wrong:
        raise RowError(where, wrong.kind, wrong.detail) from None
    name = row.get("id")
    return Conversation(where, "" if name is None else str(name), image, turns)


class _WrongError(Exception):
    """A problem of a row, raised by code that does not know the row's number."""

    def __init__(self, detail: str, kind: ProblemKind = ProblemKind.NOT_A_CONVERSATION) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def _image(row: dict[str, Any]) -> str | None:
    """The image that the row names: `image`, or `images` as a string or a list."""
    named = [row[key] for key in ("image", "images") if row.get(key) not in (None, "", [])]
    if len(named) > 1:
        raise _WrongError("image and images: only one of them can name the picture")
    images = named[0] if named and isinstance(named[0], list) else named
    if not all(isinstance(image, str) and image for image in images):
        raise _WrongError("image: expected the path of a picture")
    if any("\0" in image or not _is_encodable(image) for image in images):
        raise _WrongError("image: no file can have this name")
    if len(images) > 1:
        raise _WrongError(
            f"{len(images)} pictures: a conversation can have one", ProblemKind.SEVERAL_PICTURES
        )
    return images[0] if images else None


def _messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each message; the texts still contain `<image>`."""
    form = next((form for form in _FORMS if form[0] in row), None)
    if form is None:
        raise _WrongError("expected conversations as in LLaVA-CoT-100k, or messages as in mlx-lm")
    key, role_key, text_key = form
    if row.get("tools"):
        raise _WrongError("tools: the model cannot call any, so such a row teaches nothing")
    entries = row[key]
    if not isinstance(entries, list) or not entries:
        raise _WrongError(f"{key}: expected a list of turns")
    messages = []
    for number, entry in enumerate(entries, 1):
        where = f"{key}, turn {number}"
        if not isinstance(entry, dict):
            raise _WrongError(f"{where}: expected an object")
        role = entry.get(role_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise _WrongError(
                f"{where}: {role_key} must be one of {', '.join(_ROLES)}, not {role!r}"
            )
        text = _text(entry.get(text_key), f"{where}: {text_key}")
        if not _is_encodable(text):
            raise _WrongError(f"{where}: holds half of a character (a lone surrogate)")
        messages.append((_ROLES[role], text))
    return messages


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _WrongError(f"{where} must be a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image" and len(part) == 1:
            texts.append(_IMAGE_MARK)
        elif kind in ("image", "image_url"):
            raise _WrongError(f"{where}: name the picture in the row's images, not in a part")
        else:
            raise _WrongError(f"{where}: a part is a text with its text, or an image")
    return "".join(texts)


def _turns(messages: list[tuple[str, str]], image: str | None) -> tuple[Turn, ...]:
    """The turns, after checking that questions and answers alternate and are not empty."""
    opening = [messages[0]] if messages[0][0] == "system" else []
    turns = [Turn("system", text.strip()) for _, text in opening]
    for number, (role, text) in enumerate(messages[len(opening) :]):
        expected = ("user", "assistant")[number % 2]
        where = f"{'question' if expected == 'user' else 'answer'} {number // 2 + 1}"
        if role != expected:
            raise _WrongError(
                f"{where}: comes from the {role}; questions and answers must take turns"
            )
        if role == "user":
            if _IMAGE_MARK in text and image is None:
                raise _WrongError(f"{where}: has a mark for a picture, and the row names none")
            text = text.replace(_IMAGE_MARK, "")
        text = text.strip()
        if not text:
            raise _WrongError(f"{where}: is empty")
        turns.append(Turn(role, text, images=int(number == 0 and image is not None)))
    if turns[-1].role != "assistant":
        raise _WrongError("it ends without an answer")
    return tuple(turns)


def _is_encodable(text: str) -> bool:
    """Whether a string is valid text: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
