"""From the name of a judge to the judge of one question."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from llavacot_mlx.cache import VisionMemory
from llavacot_mlx.judges import Judge
from llavacot_mlx.judges.logprob import LogprobJudge
from llavacot_mlx.judges.majority import MajorityJudge
from llavacot_mlx.judges.outside import AskOutside, OutsideJudges
from llavacot_mlx.judges.pairwise import PairwiseJudge
from llavacot_mlx.judges.self_judge import SelfJudge
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.plans import LOGPROB, MAJORITY, PAIRWISE, SELF
from llavacot_mlx.tokenizer import Tokenizer
from llavacot_mlx.usage import Usage


@dataclass(frozen=True)
class Case:
    """What judges may look at and write to, for one question."""

    model: Mllama
    tokenizer: Tokenizer
    memory: VisionMemory | None
    """K/V of the picture."""
    usage: Usage
    picture: Image.Image | None
    question: str


def judge_named(name: str, case: Case, outside: OutsideJudges) -> Judge:
    """Raises UserError when there is no judge of that name or it cannot be loaded."""
    if name == SELF:
        return SelfJudge(case.model, case.tokenizer, case.memory, case.usage)
    if name == LOGPROB:
        return LogprobJudge()
    if name == PAIRWISE:
        return PairwiseJudge(case.model, case.tokenizer, case.memory, case.usage)
    if name == MAJORITY:
        return MajorityJudge()
    return AskOutside(name, outside.get(name), case.picture, case.question)
