"""Plans as YAML files, and as the same objects in a trace.

    method: my-swires        # a name for it, only shown
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

A step writes the next stage by its name, or goes to the end of the answer: as one piece (`answer`)
or sentence after sentence (`sentences`). Every key but `steps` and `write` may be left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .errors import UserError
from .plans import (
    MOST_RETRACES,
    PUBLISHED_DEVIATIONS,
    SELF,
    Plan,
    Retrace,
    Step,
    Unit,
    check_candidates,
    check_keep,
)
from .sampling_params import PUBLISHED_SAMPLING, Sampling, check_sampling
from .stages import Stage

_STAGES = [stage.value for stage in Stage]
_TO_THE_END = {"answer": Unit.ANSWER, "sentences": Unit.SENTENCE}
_PLAN_KEYS = ("method", "judge", "temperature", "top_p", "steps", "retrace")
_STEP_KEYS = ("write", "candidates", "keep", "judge", "temperature", "top_p", "max_tokens")
_RETRACE_KEYS = ("after", "to", "most", "rank", "threshold", "deviations")
_LARGEST_FILE = 1_000_000  # bytes; a plan has a few hundred


def read_plan(file: Path) -> Plan:
    """The plan in a YAML file. Raises UserError that names the file and the key for any mistake."""
    import yaml  # read by those alone who have such a file

    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{file}: too large for a plan")
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"{file}: {problem.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        said = " ".join(str(problem).split())
        raise UserError(f"{file}: not a YAML file: {said}") from None
    try:
        return plan_from(value)
    except UserError as problem:
        raise UserError(f"{file}: {problem}") from None


def plan_from(value: Any) -> Plan:
    """The plan that an object says. Raises UserError that names the key for any mistake."""
    keys = _Keys(value, "the plan", _PLAN_KEYS)
    listed = keys.given("steps")
    if not isinstance(listed, list) or not listed:
        raise UserError("steps: a list of what is written, such as `- write: summary`")
    usual = Sampling(
        keys.number("temperature", PUBLISHED_SAMPLING.temperature),
        keys.number("top_p", PUBLISHED_SAMPLING.top_p),
    )
    _checked(keys, lambda: check_sampling(usual))
    steps = tuple(_step(entry, index, len(listed), usual) for index, entry in enumerate(listed))
    plan = Plan(keys.text("method", "plan"), steps, usual, keys.text("judge", SELF))
    if keys.given("retrace") is None:
        return plan
    return Plan(
        plan.method, steps, plan.sampling, plan.judge, _retrace(keys.given("retrace"), steps)
    )


def plan_object(plan: Plan) -> dict[str, Any]:
    """The object that `plan_from` reads as this plan."""
    names = [_written(step, index) for index, step in enumerate(plan.steps)]
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
            "most": retrace.most,
            "rank": retrace.rank,
        }
        if retrace.threshold is None:
            value["retrace"]["deviations"] = retrace.deviations
        else:
            value["retrace"]["threshold"] = retrace.threshold
    return value


def _written(step: Step, index: int) -> str:
    """What `write` says of the plan's step number `index`."""
    if step.unit is Unit.STAGE:
        return _STAGES[index]
    if step.unit is Unit.ANSWER and index == len(_STAGES) - 1:
        return _STAGES[index]
    return next(name for name, unit in _TO_THE_END.items() if unit is step.unit)


def _step(value: Any, index: int, count: int, usual: Sampling) -> Step:
    keys = _Keys(value, f"steps[{index}]", _STEP_KEYS)
    write = keys.text("write", None)
    last = index == count - 1
    if write in _TO_THE_END:
        if not last:
            raise UserError(f"steps[{index}]: {write} goes to the end, so nothing follows it")
        unit = _TO_THE_END[write]
    else:
        expected = _STAGES[index] if index < len(_STAGES) else None
        if write != expected:
            wanted = [name for name in (expected, *_TO_THE_END) if name]
            raise UserError(f"steps[{index}]: write {write!r}; here it is {' or '.join(wanted)}")
        unit = Unit.ANSWER if index == len(_STAGES) - 1 else Unit.STAGE
        if last and unit is Unit.STAGE:
            raise UserError("steps: the last one must write the conclusion, answer or sentences")
    candidates, keep = keys.whole("candidates", 1), keys.whole("keep", 1)
    _checked(keys, lambda: check_candidates(candidates))
    _checked(keys, lambda: check_keep(keep, candidates))
    sampling = None
    if keys.given("temperature") is not None or keys.given("top_p") is not None:
        sampling = Sampling(
            keys.number("temperature", usual.temperature), keys.number("top_p", usual.top_p)
        )
        _checked(keys, lambda: check_sampling(sampling))
    max_tokens = keys.whole("max_tokens", 0) if keys.given("max_tokens") is not None else None
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"{keys.where}: max_tokens {max_tokens}: at least 1")
    judge = keys.text("judge", "") or None
    return Step(unit, candidates, keep, judge, sampling, max_tokens)


def _retrace(value: Any, steps: tuple[Step, ...]) -> Retrace:
    keys = _Keys(value, "retrace", _RETRACE_KEYS)
    names = [_written(step, index) for index, step in enumerate(steps)]
    places = {}
    for key in ("after", "to"):
        name = keys.text(key, None)
        if name not in names:
            raise UserError(f"retrace: {key} {name!r} is no step; there are {', '.join(names)}")
        places[key] = names.index(name)
    after, to = places["after"], places["to"]
    if to > after:
        raise UserError("retrace: it goes from a step back to one that comes no later")
    if after == len(steps) - 1:
        raise UserError("retrace: after the last step the answer is there; go back before it")
    most, rank = keys.whole("most", 3), keys.whole("rank", steps[after].keep)
    if not 0 <= most <= MOST_RETRACES:
        raise UserError(f"retrace: most {most}: take 0 to {MOST_RETRACES}")
    if not 1 <= rank <= steps[after].candidates:
        raise UserError(f"retrace: rank {rank}: that step has {steps[after].candidates} candidates")
    threshold = keys.number("threshold", 0.0) if keys.given("threshold") is not None else None
    if threshold is not None and keys.given("deviations") is not None:
        raise UserError("retrace: threshold and deviations both say how good is good enough")
    deviations = keys.number("deviations", PUBLISHED_DEVIATIONS)
    return Retrace(after, to, most, rank, threshold, deviations)


class _Keys:
    """The keys of one object, each read with its type checked."""

    def __init__(self, value: Any, where: str, known: Collection[str]) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected keys such as {', '.join(list(known)[:3])}")
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; is it {near[0]}?" if near else f"; there are {', '.join(known)}"
                raise UserError(f"{where}: unknown key {key!r}{hint}")
        self._value = value

    def given(self, key: str) -> Any:
        return self._value.get(key)

    def text(self, key: str, default: str | None) -> str:
        value = self._value.get(key, default)
        if not isinstance(value, str) or (default is None and not value):
            said = "is missing" if value is None else f"{value!r}: expected a word"
            raise UserError(f"{self.where}: {key} {said}")
        return value

    def whole(self, key: str, default: int) -> int:
        value = self._value.get(key, default)
        if type(value) is not int:
            raise UserError(f"{self.where}: {key} {value!r}: expected a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._value.get(key, default)
        if type(value) not in (int, float) or value != value:
            raise UserError(f"{self.where}: {key} {value!r}: expected a number")
        return float(value)


def _checked(keys: _Keys, check: Any) -> None:
    try:
        check()
    except UserError as problem:
        raise UserError(f"{keys.where}: {problem}") from None
