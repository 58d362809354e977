"""Reads tokenizer.json, and refuses what is no tokenizer of Llama 3.

The library does whatever the file says: it would cut and pad texts as a trainer once did, drop
merges at random, run regular expressions that never end, and give ids that the model has no
embedding for, for which MLX reads foreign memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tokenizers import Tokenizer

from llavacot_mlx.checked import (
    MAX_JSON_BYTES,
    KeyRules,
    OneOf,
    brief,
    checked,
    decode_text,
    named,
    parse_json,
    quoted,
    read_bytes,
)
from llavacot_mlx.errors import UserError
from llavacot_mlx.file_kinds import foreign_kind
from llavacot_mlx.prompt.stages import Stage

STAGE_TAGS = frozenset(tag for stage in Stage for tag in (stage.opening, stage.closing))
"""Text that some fine-tunes have tokens of their own for."""

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text before its merges."""
# Of normalizer, pre-tokenizer, post-processor and decoder; none of them makes a text longer.
_PARTS = frozenset({"Sequence", "Split", "ByteLevel", "TemplateProcessing", "NFC"})


@dataclass(frozen=True)
class _AddedToken:
    content: str
    id: int


@dataclass(frozen=True)
class _BPE:
    vocab: dict[str, int]
    type: Annotated[str, OneOf("BPE")] = "BPE"
    dropout: float | None = None


@dataclass(frozen=True)
class _File:
    """The keys that are read here; the library reads them all."""

    model: _BPE
    added_tokens: tuple[_AddedToken, ...] = ()
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None
    truncation: Any = field(default=None)
    padding: Any = field(default=None)


def read_tokenizer(file: Path, rows: int) -> Tokenizer:
    """Reads a tokenizer for a model whose embedding has `rows` rows.

    Stage tags among its added tokens become plain text of one token. As special tokens they would
    vanish from the answer, and no stage would ever open; as tokens that are matched with the white
    space around them, they would take that along.

    Raises UserError when the file cannot be read or holds something else.
    """
    data = read_bytes(file, MAX_JSON_BYTES, "the model cannot read or write text without it")
    if kind := foreign_kind(data):
        raise UserError(f"{file} is {kind}")
    try:
        text = decode_text(data)
        values = parse_json(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{file} cannot be read: {brief(problem)}") from None
    with named(f"{file} cannot be read"):
        found = checked(_File, values, KeyRules(unknown=None))
    with named(file):
        _check_ids(found, rows)
        for part in (found.normalizer, found.pre_tokenizer, found.post_processor, found.decoder):
            _check_part(part)
    if _make_plain(values, found):
        text = json.dumps(values)
    with named(f"{file} cannot be read"), library_errors():
        return Tokenizer.from_str(text)


@contextlib.contextmanager
def library_errors() -> Iterator[None]:
    """Turns whatever the library raises into a UserError; its panics are no Exception."""
    try:
        yield
    except BaseException as problem:
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise UserError(brief(problem)) from None


def _check_ids(found: _File, rows: int) -> None:
    tokens = [*found.model.vocab.items(), *((each.content, each.id) for each in found.added_tokens)]
    owners: dict[int, str] = {}
    for content, token_id in tokens:
        if not 0 <= token_id < rows:
            raise UserError(
                f"the token {quoted(content)} has the id {token_id}, and the model has {rows} "
                "embeddings: this is another model's tokenizer"
            )
        if owners.setdefault(token_id, content) != content:
            raise UserError(
                f"the tokens {quoted(owners[token_id])} and {quoted(content)} have the same id "
                f"{token_id}"
            )


def _check_part(part: Any) -> None:
    """Raises UserError for a part, or one in it, that Llama 3's tokenizer does not have."""
    if isinstance(part, list):
        for each in part:
            _check_part(each)
    if not isinstance(part, dict):
        return
    kind = part.get("type")
    if kind is not None and kind not in OneOf(*_PARTS):
        raise UserError(f"it has a part of type {quoted(kind)}, so this is no Llama 3 tokenizer")
    if kind == "Split" and part.get("pattern") != {"Regex": _SPLIT}:
        raise UserError("it splits text unlike Llama 3, so this is no Llama 3 tokenizer")
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        _check_part(part.get(key))


def _make_plain(values: dict[str, Any], found: _File) -> bool:
    """Takes out what would change the tokens of a text; returns whether there was anything."""
    is_changed = bool(found.truncation or found.padding or found.model.dropout)
    values |= {"truncation": None, "padding": None}
    values["model"]["dropout"] = None
    plain = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
    for token in values.get("added_tokens", ()):
        if token["content"] in STAGE_TAGS:
            token |= plain
            is_changed = True
    return is_changed
