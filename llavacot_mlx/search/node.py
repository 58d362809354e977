"""The tree of a search: a node is one candidate and links to the candidate that it continues."""

from __future__ import annotations

from dataclasses import dataclass, field

from llavacot_mlx.generate.decode_state import DecodeState
from llavacot_mlx.model.shared_prefix import KVPath
from llavacot_mlx.prompt.stages import Stage, StageRecord, conclusion_among
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import NodeRecord


@dataclass(eq=False)
class Node:
    """One candidate of a search: the tokens that it adds to its parent's path."""

    id: int
    parent: Node | None
    key: str
    """Its position in the tree, such as `0/2`. Its random numbers depend on this and the seed."""
    step: int
    """Index of the plan's step that it belongs to."""
    round: int
    """Number of retraces before it started."""
    state: DecodeState | None
    """K/V of its path and the next token's logits; None once nothing will continue it."""
    stage: Stage | None = None
    """The stage that it wrote last; None where it opened none."""
    stage_text: str = ""
    """That stage's whole text, without tags."""
    stages: list[StageRecord] = field(default_factory=list)
    """The stages that have ended on its whole path."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Sum of its tokens' log-probabilities."""
    closed: bool = False
    """False while it is cut off: its stage's closing tag, or its sentence's end, never came."""
    finish: Finish | None = None
    """Why nothing can follow; None where something may."""
    repeats: bool = False
    """Whether its path ends in a circle."""
    score: float | None = None
    kept: bool = False
    children: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self.finish is not None

    @property
    def path(self) -> KVPath:
        """K/V of its path. They are kept until nothing will continue or judge it."""
        assert self.state is not None
        return self.state.path

    @property
    def answer(self) -> str:
        """The answer's text up to the end of this node, tags included."""
        return (self.parent.answer if self.parent else "") + self.text

    @property
    def conclusion(self) -> str | None:
        """Its path's conclusion, with case and white space normalized; None without one."""
        found = conclusion_among(self.stages)
        return None if found is None else " ".join(found.text.casefold().split())

    @property
    def depth(self) -> int:
        """Number of candidates that precede it on its path."""
        return self.key.count("/")

    @property
    def path_ids(self) -> list[int]:
        """All generated token ids from the prompt to the end of this node."""
        return (self.parent.path_ids if self.parent else []) + self.token_ids

    @property
    def parent_id(self) -> int | None:
        """Id of the candidate that it continues; None for the prompt."""
        return self.parent.id if self.parent and self.parent.parent else None

    def record(self) -> NodeRecord:
        return NodeRecord(
            id=self.id,
            parent=self.parent_id,
            stage=self.stage,
            text=self.text,
            tokens=len(self.token_ids),
            closed=self.closed,
            score=self.score,
            kept=self.kept,
            round=self.round,
            finish=self.finish,
        )
