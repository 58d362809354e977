"""Decodes many candidates of one prompt together, one token each per forward pass.

Every candidate continues a path whose next logits are known. Each token is counted once and its K/V
are computed once. A candidate that ends leaves the batch and takes its K/V along, so whatever
continues it does not compute them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.decode_state import CandidateStart, DecodeState
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.generate.shared_decoder import RowGroup, SharedDecoder
from llavacot_mlx.generate.waiting import Waiting


@dataclass(frozen=True)
class Token:
    """A token of one candidate."""

    candidate: int
    """Its index among the starts."""
    token_id: int
    logprob: float
    """Log-probability under the model, before temperature and nucleus."""


@dataclass(frozen=True)
class Ended:
    """A candidate that ended: `ends` accepted its last token, or it reached its limit."""

    candidate: int
    state: DecodeState


def decode_batch(
    context: DecodeContext,
    starts: Sequence[CandidateStart],
    sampling: Sampling,
    seed: int,
    ends: Callable[[Token], bool],
) -> Iterator[Token | Ended | Waiting]:
    """Continues all candidates, each until `ends` accepts its last token or its limit is reached.

    Yields the tokens as they come, in the candidates' order, and Ended after a candidate's last
    token. With `context.decoder` the candidates are decoded together with those of other prompts,
    and Waiting is yielded before each pass; without it, this runs the passes itself. Closing the
    iterator ends all candidates.
    """
    decoder = context.decoder or SharedDecoder(context.model)
    group = decoder.join(context, starts, sampling, seed, continues=True)
    try:
        while group.candidates:
            if context.decoder is None:
                decoder.step()
            else:
                yield from group.wait()
            yield from _hand_over(decoder, group, starts, ends)
    finally:
        decoder.leave(group)


def _hand_over(
    decoder: SharedDecoder,
    group: RowGroup,
    starts: Sequence[CandidateStart],
    ends: Callable[[Token], bool],
) -> Iterator[Token | Ended]:
    """Yields the tokens of one pass; candidates that ended do not take part in the next one."""
    remaining = []
    for sampled in group.take():
        candidate = sampled.candidate
        token = Token(candidate, sampled.token_id, sampled.logprob)
        yield token
        if ends(token) or group.position == starts[candidate].max_tokens:
            yield Ended(candidate, decoder.state(group, candidate))
        else:
            remaining.append(candidate)
    group.candidates = remaining
