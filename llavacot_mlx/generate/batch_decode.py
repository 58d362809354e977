"""Decodes many candidates together, one token each per forward pass.

Every candidate continues a path whose next logits are known. Each token is counted once and its K/V
are computed once. A candidate that ends leaves the batch and takes its K/V along, so whatever
continues it does not compute them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.generate.sampling import log_probabilities, sample, token_keys
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache


@dataclass(frozen=True)
class DecodeState:
    """A path and the logits of its next token: where a candidate can start."""

    path: KVPath
    logits: mx.array
    """(1, vocabulary)."""


@dataclass(frozen=True)
class CandidateStart:
    """Where one candidate starts, and the key of its random numbers."""

    state: DecodeState
    key: str
    max_tokens: int
    """Maximum number of tokens; the candidate ends there even if it is incomplete."""


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
) -> Iterator[Token | Ended]:
    """Continues all candidates, each until `ends` accepts its last token or its limit is reached.

    Yields the tokens as they come, in the candidates' order, and Ended after a candidate's last
    token.

    The next step is queued before a step's tokens are yielded, so the K/V of a candidate's last
    token are already computed when it ends.
    """
    model = context.model
    active = list(range(len(starts)))
    with on_generation_stream():
        batch = SharedPrefixCache([start.state.path for start in starts], context.kv_budget)
        logits = mx.concatenate([start.state.logits for start in starts])
        next_tokens = _sample_next(logits, sampling, seed, [start.key for start in starts], 0)
        mx.async_eval(*next_tokens)
    for position in itertools.count():
        token_ids, logprobs = next_tokens
        with on_generation_stream():
            spans = span_of_all(context.image_kv, 1)
            logits = model.logits(model.hidden(token_ids[:, None], batch, spans)[:, -1])
            keys = [starts[candidate].key for candidate in active]
            next_tokens = _sample_next(logits, sampling, seed, keys, position + 1)
            mx.async_eval(*next_tokens)
        context.usage.decoded_tokens += len(active)
        context.usage.forward_passes += 1
        remaining = []
        evaluated = zip(active, np.array(token_ids), np.array(logprobs), strict=True)
        for index, (candidate, token_id, logprob) in enumerate(evaluated):
            token = Token(candidate, int(token_id), float(logprob))
            yield token
            if ends(token) or position + 1 == starts[candidate].max_tokens:
                with on_generation_stream():
                    segment = batch.segment(index, position + 1)
                path = starts[candidate].state.path.extended_by(segment)
                yield Ended(candidate, DecodeState(path, logits[index : index + 1]))
            else:
                remaining.append(index)
        if not remaining:
            return
        if len(remaining) < len(active):
            active = [active[index] for index in remaining]
            with on_generation_stream():
                batch.keep(remaining)
                indices = mx.array(remaining)
                next_ids, next_logprobs = next_tokens
                next_tokens = (next_ids[indices], next_logprobs[indices])


def _sample_next(
    logits: mx.array, sampling: Sampling, seed: int, keys: Sequence[str], position: int
) -> tuple[mx.array, mx.array]:
    """Samples the next tokens: ids and log-probabilities, (batch,) each.

    Each candidate draws with its own key, so its tokens do not depend on the others.
    """
    token_ids = sample(logits, sampling, token_keys(seed, keys, position))
    return token_ids, log_probabilities(logits, token_ids)
