"""The state that a search and its judges share, for one question."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.usage import Timings


@dataclass(frozen=True)
class SearchContext(DecodeContext):
    """The state that the search and the judges of one question share."""

    tokenizer: Tokenizer
    timings: Timings
    image: Image.Image | None
    question: str
