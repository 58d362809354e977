"""The judges that this package has itself, each in one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llavacot_mlx.judges.base import Judge
from llavacot_mlx.judges.logprob import LogprobJudge
from llavacot_mlx.judges.majority import MajorityJudge
from llavacot_mlx.judges.outside import ExternalJudgeAdapter, ExternalJudges
from llavacot_mlx.judges.pairwise import PairwiseJudge
from llavacot_mlx.judges.self_judge import SelfJudge
from llavacot_mlx.plans import LOGPROB, MAJORITY, PAIRWISE, SELF
from llavacot_mlx.search_context import SearchContext

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
