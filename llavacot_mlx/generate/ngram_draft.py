"""Drafts the next tokens from n-grams that occurred before, for speculative decoding.

A four-stage answer repeats itself: the reasoning says the caption's phrases again, and every answer
has the same tags. So the tokens that follow the last few tokens can often be guessed from what
followed them before: in the question, earlier in the answer, or in earlier answers of the same
model (n-gram speculation, as in prompt lookup decoding, Saxena 2023). The model then verifies the
whole draft in one forward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

_ORDER = 4  # tokens of the longest context
_LONGEST = 16  # tokens of a draft
_OWN_WEIGHT = 0.5  # of what followed last in this text, as a share of all that earlier texts say
_FORGETTING = 0.97  # of an old outcome, with every new one
_PRIOR = (1.0, 2.0)  # right and all guesses of a kind, before any was checked
_SHARES = 4  # kinds of guesses by how sure the counts are

_Context = tuple[int, ...]
_Kind = tuple[int, int]  # length of the context, and how sure the counts are


class DraftMemory:
    """Counts which tokens followed which contexts in the last texts of one model.

    It also measures how often guesses were right, by kind, and what a drafted token costs.
    """

    def __init__(self, texts: Iterable[Sequence[int]] = (), most_tokens: int = 16384) -> None:
        """`texts` are never forgotten; of those that are added later, the oldest are."""
        self._counts: dict[_Context, dict[int, int]] = {}
        self._most_tokens = most_tokens
        self._texts: deque[Sequence[int]] = deque()
        self._tokens = 0
        self._outcomes: dict[_Kind, tuple[float, float]] = {}
        self.cost = PassCost()
        for text in texts:
            self._count(text, 1)

    def add(self, text: Sequence[int]) -> None:
        """Remembers a finished text, and forgets the oldest ones beyond the limit of tokens."""
        self._count(text, 1)
        self._texts.append(text)
        self._tokens += len(text)
        while self._tokens > self._most_tokens:
            oldest = self._texts.popleft()
            self._count(oldest, -1)
            self._tokens -= len(oldest)

    def counts(self, context: _Context) -> dict[int, int]:
        """Returns how often each token followed the context."""
        return self._counts.get(context, {})

    def chance(self, kind: _Kind) -> float:
        """Returns the share of right guesses of a kind; recent ones count more."""
        right, guesses = self._outcomes.get(kind, _PRIOR)
        return right / guesses

    def learn(self, kind: _Kind, right: bool) -> None:
        """Takes in whether a guess of a kind was right."""
        before, guesses = self._outcomes.get(kind, _PRIOR)
        self._outcomes[kind] = (before * _FORGETTING + right, guesses * _FORGETTING + 1)

    def _count(self, text: Sequence[int], by: int) -> None:
        for end in range(1, len(text)):
            for order in range(1, min(_ORDER, end) + 1):
                context = tuple(text[end - order : end])
                following = self._counts.setdefault(context, {})
                count = following.pop(text[end], 0) + by
                if count:
                    following[text[end]] = count
                elif not following:
                    del self._counts[context]


class NgramDraft:
    """Drafts the next tokens of one text while it is written."""

    def __init__(self, memory: DraftMemory, token_ids: Iterable[int]) -> None:
        """`token_ids` is the prompt; its own n-grams are guessed from as well."""
        self._memory = memory
        self._end: list[int] = []  # the last tokens, as many as a context may have
        self._followed: dict[_Context, int] = {}  # what came last after a context in this text
        for token_id in token_ids:
            self._append(token_id)

    @property
    def cost(self) -> PassCost:
        return self._memory.cost

    def push(self, token_id: int) -> None:
        """Appends a token that was written, and learns whether it would have been guessed."""
        guess = self._guess(self._end)
        if guess is not None:
            guessed, kind = guess
            self._memory.learn(kind, guessed == token_id)
        self._append(token_id)

    def next_tokens(self, most: int) -> list[int]:
        """Returns at most `most` tokens that are likely to follow, perhaps none.

        A token is drafted as long as the chance that it and all before it are right exceeds what
        it costs to verify it, as a share of a forward pass.
        """
        drafted: list[int] = []
        context, chance = list(self._end), 1.0
        while len(drafted) < min(most, _LONGEST):
            guess = self._guess(context)
            if guess is None:
                break
            token_id, kind = guess
            chance *= self._memory.chance(kind)
            if chance <= self._memory.cost.of_a_draft:
                break
            drafted.append(token_id)
            context = [*context, token_id][-_ORDER:]
        return drafted

    def _append(self, token_id: int) -> None:
        for order in range(1, len(self._end) + 1):
            self._followed[tuple(self._end[-order:])] = token_id
        self._end = [*self._end, token_id][-_ORDER:]

    def _guess(self, end: Sequence[int]) -> tuple[int, _Kind] | None:
        """Returns the likeliest token after the longest known context, and the guess's kind."""
        for order in range(len(end), 0, -1):
            context = tuple(end[-order:])
            counts: dict[int, float] = dict(self._memory.counts(context))
            own = self._followed.get(context)
            if own is not None:
                weight = _OWN_WEIGHT * max(1, sum(counts.values()))
                counts[own] = counts.get(own, 0) + weight
            if counts:
                best = max(counts, key=lambda token_id: counts[token_id])
                share = counts[best] / sum(counts.values())
                return best, (order, int(_SHARES * share))
        return None


class PassCost:
    """Measures what a drafted token adds to the time of a forward pass."""

    def __init__(self) -> None:
        self._single = 0.0  # seconds of a pass of one token
        self.of_a_draft = 0.2
        """Time that each drafted token adds, as a share of a pass of one token."""

    def measure(self, tokens: int, seconds: float) -> None:
        """Takes in the time of a forward pass of `tokens` tokens; recent ones count more."""
        if tokens == 1:
            self._single += 0.1 * (seconds - self._single) if self._single else seconds
        elif self._single:
            added = (seconds / self._single - 1) / (tokens - 1)
            bounded = min(max(added, 0.0), 1.0)
            self.of_a_draft += 0.1 * (bounded - self.of_a_draft)
