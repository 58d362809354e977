"""Defines the tree of a stage-wise retracing search, with a fixed length for each candidate.

A random model closes no stage, so a candidate ends after the number of tokens that is set here for
its stage. There is no judge: the first candidates are kept, and the number of retraces is given.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGE_TOKENS = (24, 48, 48, 12)
"""Tokens of a summary, a caption, a reasoning and a conclusion."""


@dataclass(frozen=True)
class Planned:
    """One candidate."""

    key: str
    """Its path in the tree: its parent's key, and its number among the parent's children."""
    parent: str | None
    """None for the prompt."""
    tokens: int
    prefix_tokens: int
    """Number of generated tokens before its first one."""


def swires_rounds(candidates: int, retraces: int) -> list[list[Planned]]:
    """The candidates that are decoded together, round by round, in the published shape.

    One summary; `candidates` captions, half of them kept; as many reasonings, spread over the kept
    captions; captions and reasonings once more for each of the `retraces`; and a conclusion for
    each of half the reasonings.
    """
    summary, caption, reasoning, conclusion = STAGE_TOKENS
    keep = candidates // 2
    children: dict[str | None, int] = {}

    def written(parents: list[Planned], count: int, tokens: int) -> list[Planned]:
        new = []
        for number in range(count):
            parent = parents[number * len(parents) // count]
            place = children.get(parent.key, 0)
            children[parent.key] = place + 1
            before = parent.prefix_tokens + parent.tokens
            new.append(Planned(f"{parent.key}/{place}", parent.key, tokens, before))
        return new

    root = Planned("0", None, summary, 0)
    rounds = [[root]]
    for _ in range(retraces + 1):
        captions = written([root], candidates, caption)
        reasonings = written(captions[:keep], candidates, reasoning)
        rounds += [captions, reasonings]
    # The kept reasonings have one parent each, as if the best one of each caption were kept.
    rounds.append(written(reasonings[:: candidates // keep], keep, conclusion))
    return rounds
