"""One candidate of a search: what it adds to its parent's path."""

from __future__ import annotations

from dataclasses import dataclass, field

from llavacot_mlx.generate.batch_decode import DecodeState
from llavacot_mlx.model.shared_prefix import KVPath
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.trace.record import NodeRecord


@dataclass(eq=False)
class Node:
    """One candidate: what it adds to its parent's path."""

    id: int
    parent: Node | None
    key: str
    """Its position in the tree, such as `0/2`, on which (with the seed) its random numbers
    depend."""
    step: int
    """The step of the plan that it belongs to."""
    round: int
    state: DecodeState | None
    """Where its path can continue; None once nothing will continue it."""
    stage: Stage | None = None
    """The stage that it wrote last; None where it opened none."""
    stage_text: str = ""
    """That stage's text without tags, from the stage's beginning on."""
    stages: list[StageRecord] = field(default_factory=list)
    """The stages that its whole path has ended."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Sum of its tokens' log-probabilities."""
    closed: bool = False
    """False while it is cut off: its stage's closing tag, or its sentence's end, never came."""
    ended: bool = False
    """Whether nothing can follow: the turn ended, or a token limit was reached."""
    score: float | None = None
    kept: bool = False
    children: int = 0

    @property
    def path(self) -> KVPath:
        """K/V of its path, kept while something may follow and while it is judged."""
        assert self.state is not None
        return self.state.path

    @property
    def answer(self) -> str:
        """All text from the beginning of the answer to its end, tags included."""
        return (self.parent.answer if self.parent else "") + self.text

    @property
    def conclusion(self) -> str | None:
        """Its path's conclusion, with case and white space normalized; None without one."""
        for record in reversed(self.stages):
            if record.stage is Stage.CONCLUSION:
                return " ".join(record.text.casefold().split())
        return None

    @property
    def depth(self) -> int:
        """Number of candidates before it on its path."""
        return self.key.count("/")

    @property
    def path_ids(self) -> list[int]:
        """Every generated token from the prompt to this node's last."""
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
        )
