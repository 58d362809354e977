"""Converts text to token ids and back; special tokens in a user's text are plain text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from llavacot_mlx.checked import KeyRules, checked, named, read_json
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.prompt.tokenizer_file import STAGE_TAGS, library_errors, read_tokenizer

_FORMAT_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MAX_CHARACTERS = 1_000_000
"""Of a text: many times what a context of 131,072 tokens holds. The library panics on runs of some
million spaces, and takes forty bytes for each character."""
_STOP_TOKENS = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")

# The published training collator and search scripts tokenized a templated text with special tokens
# added again, so training probably saw two; the authors' simple demo used one. To compare, set 2.
_BOS_COUNT = 1

# A byte-level vocabulary writes each byte as one visible character: most bytes as the character of
# the same number, and bytes that Latin-1 does not show as the characters from 256 on, in order.
_INVISIBLE = (*range(0x21), *range(0x7F, 0xA1), 0xAD)
_BYTES_OF_CHARACTERS = {256 + index: byte for index, byte in enumerate(_INVISIBLE)}
# Letters of two to four bytes, a space, and line breaks, some of which share a token.
_SAMPLE = " Ü 這 🙂\n\n</SUMMARY>\n"


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. Its images come before its text."""

    role: str
    text: str
    images: int = 0


class Tokenizer:
    """The tokenizer of a Llama 3.2 Vision checkpoint."""

    def __init__(self, tokenizer: HFTokenizer, image_id: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._image_id = image_id
        self.stop_ids = stop_ids
        """Ids that end a turn."""
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id in added if added[token_id].special)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Tokenizer:
        """Reads `tokenizer.json` and, where there is one, `generation_config.json`."""
        file = folder / "tokenizer.json"
        rows = config.text.embedding_rows
        tokenizer = read_tokenizer(file, rows)
        plain = [
            AddedToken(token.content, special=True)
            for token in tokenizer.get_added_tokens_decoder().values()
            if not token.special and token.content not in STAGE_TAGS
        ]
        if plain:
            tokenizer.add_special_tokens(plain)
        # Special tokens are added by id below; in text, their strings are ordinary characters.
        tokenizer.encode_special_tokens = True
        for token in _FORMAT_TOKENS:
            if tokenizer.token_to_id(token) is None:
                raise UserError(f"{file}: there is no {token}, so this is no Llama 3 tokenizer")
        image_id = tokenizer.token_to_id("<|image|>")
        if image_id not in (None, config.image_token_id):
            raise UserError(
                f"{file}: <|image|> is {image_id}, and config.json's image_token_index is "
                f"{config.image_token_id}: this is another model's tokenizer"
            )
        loaded = cls(tokenizer, config.image_token_id, _stop_ids(folder, tokenizer, rows))
        if b"".join(map(loaded._bytes, loaded.encode(_SAMPLE))) != _SAMPLE.encode():
            raise UserError(
                f"{file}: its tokens do not spell text in bytes, so this is no Llama 3 tokenizer"
            )
        return loaded

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text; nothing in it is read as a special token.

        Raises UserError for a text that is too long, or that the library cannot encode.
        """
        if len(text) > MAX_CHARACTERS:
            raise UserError(
                f"too long: a text of {len(text)} characters, and {MAX_CHARACTERS} are the most"
            )
        with named("this text cannot be encoded"), library_errors():
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids of a conversation, up to where the assistant writes.

        The format is the one that LLaVA-CoT expects at inference: one `<|begin_of_text|>`, then
        each turn with its header, then the assistant's header.
        """
        ids = [self._special("<|begin_of_text|>")] * _BOS_COUNT
        for turn in turns:
            ids += self._header(turn.role)
            if turn.images:
                ids += self.encode("\n\n") + [self._image_id] * turn.images
                ids += self.encode(turn.text)
            else:  # one text, since new lines at its start share a token with the header's
                ids += self.encode("\n\n" + turn.text)
            ids.append(self._special("<|eot_id|>"))
        return ids + self._header("assistant") + self.encode("\n\n")

    def next_turn(self, text: str) -> list[int]:
        """Returns ids that end the assistant's turn, add a user's turn, and open the next."""
        end = self._special("<|eot_id|>")
        user_turn = [*self._header("user"), *self.encode("\n\n" + text), end]
        return [end, *user_turn, *self._header("assistant"), *self.encode("\n\n")]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of generated ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def decode_with_special_tokens(self, ids: Sequence[int]) -> str:
        """Returns the text of ids with special tokens spelled out, to be shown to people."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def stream(self) -> TextStream:
        return TextStream(self._bytes)

    def _bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token; none if it is special or not in the vocabulary."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return b""
        try:
            return token.translate(_BYTES_OF_CHARACTERS).encode("latin-1")
        except UnicodeEncodeError:  # not spelled in bytes: `decode` takes it as it stands, too
            return token.encode()

    def _header(self, role: str) -> list[int]:
        return [
            self._special("<|start_header_id|>"),
            *self.encode(role),
            self._special("<|end_header_id|>"),
        ]

    def _special(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        assert token_id is not None  # `load` made sure
        return token_id


class TextStream:
    """Converts generated ids to text, piece by piece, without splitting a character.

    Only the bytes of an incomplete character are held back, so that a token costs the same wherever
    it comes in an answer.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Returns the text that this id completed; empty if it only continues a character."""
        return self._decoder.decode(self._bytes_of(token_id))

    def finish(self) -> str:
        """Returns � if an incomplete character was held back, else an empty string."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class _Generation:
    """The keys that are read from generation_config.json."""

    eos_token_id: int | tuple[int | None, ...] | None = None


def _stop_ids(folder: Path, tokenizer: HFTokenizer, rows: int) -> frozenset[int]:
    ids = {tokenizer.token_to_id(token) for token in _STOP_TOKENS}
    file = folder / "generation_config.json"
    if file.exists():
        values = read_json(file)
        with named(file):
            listed = checked(_Generation, values, KeyRules(unknown=None)).eos_token_id
            given = listed if isinstance(listed, tuple) else (listed,)
            for token_id in given:
                if token_id is not None and not 0 <= token_id < rows:
                    raise UserError(
                        f"eos_token_id: {token_id} is no token of a model with {rows} embeddings"
                    )
        ids |= set(given)
    return frozenset(token_id for token_id in ids if token_id is not None)
