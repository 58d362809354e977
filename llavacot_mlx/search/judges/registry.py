"""The judges that this package has itself, each in one row of a table."""

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

# Those that ask the model about what it wrote take the context; the others need the candidates
# alone.
OWN: Mapping[str, Callable[[SearchContext], Judge]] = {
    SELF: SelfJudge,
    LOGPROB: lambda context: LogprobJudge(),
    PAIRWISE: PairwiseJudge,
    MAJORITY: lambda context: MajorityJudge(),
}


def judge_named(name: str, context: SearchContext, external: ExternalJudges) -> Judge:
    """The judge of that name for one question, loaded where it is a model or in a package.

    Raises UserError when there is none, or it cannot be loaded.
    """
    if name in OWN:
        return OWN[name](context)
    return ExternalJudgeAdapter(name, external.get(name), context.image, context.question)
