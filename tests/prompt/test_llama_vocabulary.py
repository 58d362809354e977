"""The stand-in for Llama's tokenizer cuts the stage tags where Llama's own does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from llama_vocabulary import LLAMA, ORDINARY_TOKENS, PIECES, SPECIAL_TOKENS, write_stand_in
from tokenizers import Tokenizer as HFTokenizer

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer

BEFORE = ("", "a", ".", ",", ":", ";", "!", "?", ")", '"', " ", "\n", "\n\n", ">", "?>", ". ", "  ")
AFTER = ("", "\n", "\n\n", "\n\n\n", "\r\n", ":", ".", ",", '"', " ", "<", ">", "</", "<SUMMARY>")

Llama = Callable[[str], tuple[Path, Tokenizer]]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


@pytest.mark.parametrize("name", LLAMA)
def test_tags_straddle_tokens(name: str, llama: Llama) -> None:
    """`</` begins in the token of the full stop, and `>` shares one with line breaks or a tag."""
    text = "x.</CAPTION>\n\n<REASONING></SUMMARY><CONCLUSION>"
    cut = "x|.</|CAP|TION|>\n\n|<|RE|ASON|ING|></|SUM|MARY|><|CON|CLUSION|>"
    assert "|".join(pieces(llama(name)[1], text)) == cut


def test_the_stand_in_is_laid_out_as_llamas_and_always_the_same(
    llama: Llama, tmp_path: Path
) -> None:
    folder = llama("stand-in")[0]
    file = (folder / "tokenizer.json").read_bytes()
    assert (write_stand_in(tmp_path) / "tokenizer.json").read_bytes() == file
    tokenizer = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    special = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert special == list(range(ORDINARY_TOKENS, ORDINARY_TOKENS + len(special)))
    assert tokenizer.token_to_id("<|image|>") == tokenizer.get_vocab_size() - 1


def test_the_stand_in_cuts_tags_as_llamas_tokenizer_does(llama: Llama) -> None:
    """About the real vocabulary: every tag, with what may stand before and after it."""
    real, stand_in = (llama(name)[1] for name in ("real", "stand-in"))
    tags = [tag for stage in Stage for tag in (stage.opening, stage.closing)]
    texts = ["".join(parts) for parts in product(BEFORE, tags, AFTER)]
    assert [text for text in texts if pieces(stand_in, text) != pieces(real, text)] == []
    assert [piece for piece in PIECES if len(real.encode(piece)) > 1] == []
