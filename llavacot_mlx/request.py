"""One question, with all options that say how to answer it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

from llavacot_mlx.checked import brief, is_text
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.kv_budget import NO_LIMITS, KVLimits
from llavacot_mlx.plan.plan import Plan, Settings, make_plan

if TYPE_CHECKING:
    from llavacot_mlx.prompt.images import ImageSource


@dataclass(frozen=True)
class Request:
    """One question about an image, and how to answer it.

    Raises UserError for a question that is empty or no text, a `max_tokens` below 1, and a seed
    that is negative or has more than 63 bits.
    """

    image: ImageSource | None
    """A path, the bytes of a file, or a PIL image; None for a question without an image."""
    question: str
    plan: Plan
    max_tokens: int = 2048
    """Maximum number of tokens of one path."""
    seed: int = 0
    limits: KVLimits = NO_LIMITS
    repetition_stop: bool = True
    """Whether a path that only repeats itself ends, see `generate/repetition.py`."""
    speculation: bool = True
    """Whether tokens are drafted from earlier text; the answer is the same without."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UserError("the question is empty")
        if not is_text(self.question):
            raise UserError("the question holds half of a character (a lone surrogate)")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be 0 or more, and below 2^63, not {brief(self.seed)}")


class AskOptions(TypedDict, total=False):
    """The keywords of `Assistant.ask` and `Assistant.stream`; None stands for the default."""

    search: str | Plan | None
    """A method's name (`plan.plan.Method`); by default "sample" where a temperature is given, and
    "greedy" otherwise. Or a whole plan, from `make_plan(Settings(…))` or `read_plan(file)`, which
    then sets candidates, judge, temperature and top_p itself."""
    candidates: int | None
    """Number of candidates; by default the method's."""
    judge: str | None
    """"self", "logprob", "pairwise", "majority", or an external judge; by default the method's."""
    temperature: float | None
    """0 always takes the most likely token. All methods but greedy sample, by default at 0.6."""
    top_p: float | None
    """Above temperature 0, tokens are drawn from this nucleus; 0.9 by default."""
    max_tokens: int
    """Maximum number of tokens of one path; 2048 by default."""
    seed: int
    """The same seed draws the same tokens; 0 by default."""
    limits: KVLimits
    """Limits on keys and values; none by default."""
    repetition_stop: bool
    """Whether a path that only repeats the same tokens is stopped; True by default."""
    speculation: bool
    """Whether tokens are drafted from earlier text and verified together; True by default. The
    answer is the same without."""


def make_request(
    image: ImageSource | None, question: str, **options: Unpack[AskOptions]
) -> Request:
    """Makes a request from the options.

    Raises UserError for options that contradict each other or that the method does not support, and
    TypeError for an unknown one.
    """
    if unknown := options.keys() - AskOptions.__annotations__.keys():
        known = ", ".join(AskOptions.__annotations__)
        raise TypeError(f"unexpected option {min(unknown)!r}; there are {known}")
    search = options.get("search")
    settings = Settings(
        search=None if isinstance(search, Plan) else search,
        candidates=options.get("candidates"),
        judge=options.get("judge"),
        temperature=options.get("temperature"),
        top_p=options.get("top_p"),
    )
    if not isinstance(search, Plan):
        plan = make_plan(settings)
    elif settings == Settings():
        plan = search
    else:
        raise UserError("a plan says its candidates, judge, temperature and top_p itself")
    return Request(
        image,
        question,
        plan,
        max_tokens=options.get("max_tokens", Request.max_tokens),
        seed=options.get("seed", Request.seed),
        limits=options.get("limits", Request.limits),
        repetition_stop=options.get("repetition_stop", Request.repetition_stop),
        speculation=options.get("speculation", Request.speculation),
    )
