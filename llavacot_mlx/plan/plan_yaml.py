"""Plans as YAML files, and as the same objects in a trace.

    method: my-swires        # a name, which is only shown
    judge: self
    temperature: 0.6
    top_p: 0.9
    steps:
      - write: summary
      - write: caption
        candidates: 4
        keep: 2
      - write: reasoning
        candidates: 4
        keep: 2
        temperature: 0.8
        max_tokens: 600
      - write: conclusion
        candidates: 2
    retrace: {after: reasoning, to: caption, most: 3, rank: 2, deviations: 0.2533}

A step writes the next stage, given by its name, or the rest of the answer: as one piece (`answer`)
or sentence by sentence (`sentences`). Every key but `steps` and `write` may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llavacot_mlx.checked import KeyRules, Range, brief, checked, named, quoted, read_yaml
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING, Sampling, check_sampling
from llavacot_mlx.plan.plan import (
    MAX_RETRACES,
    PUBLISHED_DEVIATIONS,
    SELF,
    Plan,
    Retrace,
    Step,
    Unit,
    check_candidates,
    check_keep,
    check_threshold,
)
from llavacot_mlx.prompt.stages import Stage

_STAGES = [stage.value for stage in Stage]
_TO_THE_END = {"answer": Unit.ANSWER, "sentences": Unit.SENTENCE}


@dataclass(frozen=True)
class _Retrace:
    after: str
    to: str
    most: Annotated[int, Range(min=0, max=MAX_RETRACES)] = 3
    rank: int | None = None
    threshold: float | None = None
    deviations: float | None = None


@dataclass(frozen=True)
class _Step:
    write: str
    candidates: int = 1
    keep: int = 1
    judge: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Annotated[int, Range(min=1)] | None = None


@dataclass(frozen=True)
class _Plan:
    method: str = "plan"
    judge: str = SELF
    temperature: float = PUBLISHED_SAMPLING.temperature
    top_p: float = PUBLISHED_SAMPLING.top_p
    steps: tuple[_Step, ...] = ()
    retrace: _Retrace | None = None


def read_plan(file: Path) -> Plan:
    """Reads a plan from a YAML file. Raises UserError that names the file and the key."""
    value = read_yaml(file)
    with named(file):
        plan = plan_from_dict(value)
        retrace = plan.retrace
        if retrace is not None and retrace.threshold is not None:
            # Not in a trace: a threshold that was calibrated may be above the highest score.
            with named("retrace"):
                check_threshold(plan.judge_for(plan.steps[retrace.after]), retrace.threshold)
        return plan


def plan_from_dict(value: Any) -> Plan:
    """Makes a plan from a dict. Raises UserError that names the wrong key."""
    read = checked(_Plan, value, KeyRules(float_texts=True))
    if not read.steps:
        raise UserError("steps: a list of what is written, such as `- write: summary`")
    default = Sampling(read.temperature, read.top_p)
    check_sampling(default)
    steps = []
    for index, entry in enumerate(read.steps):
        with named(f"steps[{index}]"):
            steps.append(_step(entry, index, len(read.steps), default))
    retrace = None
    if read.retrace is not None:
        with named("retrace"):
            retrace = _retrace(read.retrace, steps)
    return Plan(read.method, tuple(steps), default, read.judge, retrace)


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Returns the dict from which `plan_from_dict` makes this plan."""
    names = [_write_value(step, index) for index, step in enumerate(plan.steps)]
    value: dict[str, Any] = {
        "method": str(plan.method),
        "judge": plan.judge,
        "temperature": plan.sampling.temperature,
        "top_p": plan.sampling.top_p,
        "steps": [],
    }
    for name, step in zip(names, plan.steps, strict=True):
        entry = {"write": name, "candidates": step.candidates, "keep": step.keep}
        if step.judge is not None:
            entry["judge"] = step.judge
        if step.sampling is not None:
            entry |= {"temperature": step.sampling.temperature, "top_p": step.sampling.top_p}
        if step.max_tokens is not None:
            entry["max_tokens"] = step.max_tokens
        value["steps"].append(entry)
    if plan.retrace is not None:
        retrace = plan.retrace
        value["retrace"] = {
            "after": names[retrace.after],
            "to": names[retrace.to],
            "most": retrace.max_retraces,
            "rank": retrace.rank,
        }
        if retrace.threshold is None:
            value["retrace"]["deviations"] = retrace.deviations
        else:
            value["retrace"]["threshold"] = retrace.threshold
    return value


def _write_value(step: Step, index: int) -> str:
    """Returns the value of `write` for the plan's step `index`."""
    if step.unit is Unit.STAGE:
        return _STAGES[index]
    if step.unit is Unit.ANSWER and index == len(_STAGES) - 1:
        return _STAGES[index]
    return next(name for name, unit in _TO_THE_END.items() if unit is step.unit)


def _step(read: _Step, index: int, count: int, default: Sampling) -> Step:
    last = index == count - 1
    if read.write in _TO_THE_END:
        if not last:
            raise UserError(f"{read.write} goes to the end, so nothing follows it")
        unit = _TO_THE_END[read.write]
    else:
        expected = _STAGES[index] if index < len(_STAGES) else None
        if read.write != expected:
            wanted = [name for name in (expected, *_TO_THE_END) if name]
            raise UserError(f"write {quoted(read.write)}; here it is {' or '.join(wanted)}")
        unit = Unit.ANSWER if index == len(_STAGES) - 1 else Unit.STAGE
        if last and unit is Unit.STAGE:
            raise UserError("the last one must write the conclusion, answer or sentences")
    check_candidates(read.candidates)
    check_keep(read.keep, read.candidates)
    sampling = None
    if read.temperature is not None or read.top_p is not None:
        sampling = Sampling(
            default.temperature if read.temperature is None else read.temperature,
            default.top_p if read.top_p is None else read.top_p,
        )
        check_sampling(sampling)
    return Step(
        unit=unit,
        candidates=read.candidates,
        keep=read.keep,
        judge=read.judge or None,
        sampling=sampling,
        max_tokens=read.max_tokens,
    )


def _retrace(read: _Retrace, steps: Sequence[Step]) -> Retrace:
    names = [_write_value(step, index) for index, step in enumerate(steps)]
    for key, name in (("after", read.after), ("to", read.to)):
        if name not in names:
            raise UserError(f"{key} {quoted(name)} is not a step; there are {', '.join(names)}")
    after, to = names.index(read.after), names.index(read.to)
    if to > after:
        raise UserError("it goes from a step back to one that comes no later")
    if after == len(steps) - 1:
        raise UserError("after the last step the answer is there; go back before it")
    rank = steps[after].keep if read.rank is None else read.rank
    if not 1 <= rank <= steps[after].candidates:
        raise UserError(f"rank {brief(rank)}: that step has {steps[after].candidates} candidates")
    if read.threshold is not None and read.deviations is not None:
        raise UserError("threshold and deviations both say how good is good enough")
    deviations = PUBLISHED_DEVIATIONS if read.deviations is None else read.deviations
    return Retrace(
        after=after,
        to=to,
        max_retraces=read.most,
        rank=rank,
        threshold=read.threshold,
        deviations=deviations,
    )
