"""Parses one row of a file into a conversation, or a question, about an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llavacot_mlx.checked import is_text, parse_json, quoted
from llavacot_mlx.prompt.image_source import is_inline
from llavacot_mlx.prompt.tokenizer import Turn
from llavacot_mlx.rows.problem import ProblemKind, RowError

_IMAGE_MARK = "<image>"
# For each of the two forms: the key of the list of turns, and a turn's keys of role and text.
_FORMS = (("conversations", "from", "value"), ("messages", "role", "content"))
_PAIRS = (("question", "answer"), ("prompt", "completion"), ("query", "response"))
_IMAGE_KEYS = {"image", "images"}
# Under which an object or a part has its image, the most specific first.
_PATH_KEYS = ("path", "image", "image_url", "url")
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
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


@dataclass(frozen=True)
class AskedQuestion:
    """The image of a row, and the first question about it."""

    image: str
    """As given in the row."""
    text: str


def parse_row(line: str, where: str) -> Conversation:
    """Parses a row to learn from: one of LLaVA-CoT-100k, of mlx-lm's or mlx-vlm's chats, or a pair.

    That is `{"id": …, "image": …, "conversations": [{"from": "human", "value": …}, …]}`, or
    `{"messages": [{"role": …, "content": …}, …], "images": […]}`, whose content is a string or a
    list of `{"type": "text", "text": …}` and `{"type": "image", "image": …}`, or
    `{"image": …, "question": …, "answer": …}`. An image is a path, or an object with its `path` as
    Hugging Face's datasets have it, or the only item of a list of these. `<image>` in a question
    marks the row's image and is removed. Other keys are ignored.

    Raises RowError, whose message starts with `where`.
    """
    row = _object(line, where)
    try:
        found: list[str] = []
        messages = _messages(row, found)
        image = _image(row, found)
        turns = _turns(messages, image)
    except _WrongError as wrong:
        raise RowError(where, wrong.kind, wrong.detail) from None
    name = row.get("id")
    return Conversation(where, "" if name is None else str(name), image, turns)


def parse_question(line: str, where: str) -> AskedQuestion:
    """Parses a row to ask from: one that `parse_row` accepts, or one without answers.

    Raises RowError, whose message starts with `where`, also for a row without an image.
    """
    row = _object(line, where)
    try:
        found: list[str] = []
        messages = _messages(row, found)
        image = _image(row, found)
        if image is None:
            raise _WrongError("image is missing")
        asked = next((text for role, text in messages if role == "user"), None)
        if asked is None:
            raise _WrongError("there is no turn from human or user, so no question")
        text = asked.replace(_IMAGE_MARK, "").strip()
        if not text:
            raise _WrongError("the question is missing or empty")
    except _WrongError as wrong:
        raise RowError(where, wrong.kind, wrong.detail) from None
    return AskedQuestion(image, text)


def is_row(row: dict[str, Any]) -> bool:
    """Whether an object has one of the keys by which a row is known."""
    return any(key in row for key, *_ in (*_FORMS, *_PAIRS)) or bool(row.keys() & _IMAGE_KEYS)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line.strip())
    except RecursionError:
        raise RowError(where, ProblemKind.NOT_JSON, "not JSON: nested too deep") from None
    except ValueError as problem:
        raise RowError(where, ProblemKind.NOT_JSON, f"not JSON: {problem}") from None
    if not isinstance(row, dict):
        said = "expected an object with conversations or messages, or an image and a question"
        raise RowError(where, ProblemKind.NOT_A_CONVERSATION, said)
    return row


class _WrongError(Exception):
    """A problem of a row, raised by code that does not know the row's number."""

    def __init__(self, detail: str, kind: ProblemKind = ProblemKind.NOT_A_CONVERSATION) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def _image(row: dict[str, Any], found: list[str]) -> str | None:
    """The image that the row names in `image` or `images`, or that its parts name (`found`)."""
    named = [row[key] for key in ("image", "images") if row.get(key) not in (None, "", [])]
    if len(named) > 1:
        raise _WrongError("image and images: only one of them can name the picture")
    images = _paths(named[0]) if named else []
    in_parts = list(dict.fromkeys(found))
    if images and in_parts and in_parts != images:
        raise _WrongError("the row and its parts name different pictures")
    images = images or in_parts
    if any("\0" in image or not is_text(image) for image in images):
        raise _WrongError("image: no file can have this name")
    if len(images) > 1:
        raise _WrongError(
            f"{len(images)} pictures: a conversation can have one", ProblemKind.SEVERAL_PICTURES
        )
    return images[0] if images else None


def _paths(value: Any) -> list[str]:
    """The paths that a value names: a path, an object with one, or a list of these."""
    if isinstance(value, str) and value:
        return [value]
    if isinstance(value, list):
        return [path for each in value for path in _paths(each)]
    if isinstance(value, dict):
        given = {key: part for key, part in value.items() if part is not None}
        data = given.get("bytes")
        if isinstance(data, str) and is_inline(data):
            return [data]
        for key in _PATH_KEYS:
            if key in given:
                return _paths(given[key])
        if data is not None:
            raise _WrongError("image: its bytes are in the row; save it as a file, and name that")
    raise _WrongError("image: expected the path of a picture")


def _messages(row: dict[str, Any], found: list[str]) -> list[tuple[str, str]]:
    """Role and text of each message, still with `<image>`; adds images of its parts to `found`."""
    if row.get("tools"):
        raise _WrongError("tools: the model cannot call any, so such a row teaches nothing")
    form = next((form for form in _FORMS if form[0] in row), None)
    if form is None:
        return _pair(row, found)
    entries = row[form[0]]
    if not isinstance(entries, list) or not entries:
        raise _WrongError(f"{form[0]}: expected a list of turns")
    return _entries(entries, form, found)


def _pair(row: dict[str, Any], found: list[str]) -> list[tuple[str, str]]:
    """The question of a row that is no chat, and its answer if it has one."""
    pair = next((pair for pair in _PAIRS if pair[0] in row), None)
    if pair is None:
        raise _WrongError(
            "expected conversations as in LLaVA-CoT-100k, messages as in mlx-lm, or a question "
            "with its answer"
        )
    question, answer = row[pair[0]], row.get(pair[1])
    if isinstance(question, list) and isinstance(answer, list | None):
        return _entries([*question, *(answer or ())], (pair[0], "role", "content"), found)
    messages = []
    for role, key, text in (("user", pair[0], question), ("assistant", pair[1], answer)):
        if text is None:
            continue
        if role == "assistant" and isinstance(text, int) and not isinstance(text, bool):
            text = str(text)  # of at most 300 digits, see `parse_json`
        if not isinstance(text, str) and role == "user":
            raise _WrongError("the question is missing or empty")
        if not isinstance(text, str):
            raise _WrongError(f"{key} must be a text")
        if not is_text(text):
            raise _WrongError(f"{key}: holds half of a character (a lone surrogate)")
        messages.append((role, text))
    return messages or [("user", "")]


def _entries(
    entries: list[Any], form: tuple[str, str, str], found: list[str]
) -> list[tuple[str, str]]:
    key, role_key, text_key = form
    messages = []
    for number, entry in enumerate(entries, 1):
        where = f"{key}, turn {number}"
        if not isinstance(entry, dict):
            raise _WrongError(f"{where}: expected an object")
        name, content = (
            _either(entry, role_key, "role", "from"),
            _either(entry, text_key, "content", "value"),
        )
        role = _ROLES.get(name.casefold()) if isinstance(name, str) else None
        if role is None:
            raise _WrongError(
                f"{where}: {role_key} must be one of {', '.join(_ROLES)}, not {quoted(name)}"
            )
        text = _text(content, f"{where}: {text_key}", role, found)
        if not is_text(text):
            raise _WrongError(f"{where}: holds half of a character (a lone surrogate)")
        messages.append((role, text))
    return messages


def _either(entry: dict[str, Any], *keys: str) -> Any:
    """The value of the first key that the entry has; chats mix the keys of the two forms."""
    return next((entry[key] for key in keys if key in entry), None)


def _text(content: Any, where: str, role: str, found: list[str]) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _WrongError(f"{where} must be a text or a list of parts")
    texts = []
    for part in content:
        # A table of parts has every key in every part, most of them null.
        given = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
        kind = given.get("type") or next((key for key in ("text", "image") if key in given), None)
        if kind == "text" and isinstance(given.get("text"), str):
            texts.append(given["text"])
        elif kind in ("image", "image_url"):
            if role != "user":
                raise _WrongError(f"{where}: a picture belongs to a question")
            if any(key in given for key in _PATH_KEYS):
                found += _paths({key: given[key] for key in _PATH_KEYS if key in given})
            texts.append(_IMAGE_MARK)
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
