"""The table of built-in judges, one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llavacot_mlx.plan.plan import LOGPROB, MAJORITY, PAIRWISE, SELF
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.judges.base import Judge
from llavacot_mlx.search.judges.logprob import LogprobJudge
from llavacot_mlx.search.judges.majority import MajorityJudge
from llavacot_mlx.search.judges.pairwise import PairwiseJudge
from llavacot_mlx.search.judges.plugins import ExternalJudgeAdapter, ExternalJudges
from llavacot_mlx.search.judges.self_judge import SelfJudge

# Judges that ask the model take the context; the others need the candidates alone.
BUILT_IN: Mapping[str, Callable[[SearchContext], Judge]] = {
    SELF: SelfJudge,
    LOGPROB: lambda context: LogprobJudge(),
    PAIRWISE: PairwiseJudge,
    MAJORITY: lambda context: MajorityJudge(),
}


def make_judge(name: str, context: SearchContext, external: ExternalJudges) -> Judge:
    """Returns the judge for one question; loads it if it is a model or a package's.

    Raises UserError when there is no such judge, or it cannot be loaded.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](context)
    return ExternalJudgeAdapter(name, external.get(name), context.image, context.question)
