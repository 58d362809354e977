"""The page's table of facts: how the question was asked, and what the answer cost."""

from __future__ import annotations

from collections.abc import Mapping

from llavacot_mlx.cli.units import format_bytes, format_seconds
from llavacot_mlx.cli.views.ending import ending_line
from llavacot_mlx.trace.record import Trace


def details(trace: Trace) -> list[tuple[str, str]]:
    """The rows of the table: a name and a value."""
    usage, timings, plan = trace.usage, trace.timings, trace.search.plan
    computed = usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens
    rows = [("Model", trace.model), ("Method", trace.search.method)]
    if trace.asked_at:
        rows.insert(0, ("Asked", trace.asked_at.replace("T", " ")))
    if trace.adapter is not None:
        rows.insert(rows.index(("Method", trace.search.method)), ("Adapter", trace.adapter))
    if plan:
        rows += _plan_rows(plan, is_search=bool(trace.search.nodes))
    rows += [
        ("Seed", str(trace.seed)),
        ("Longest answer", f"{trace.max_tokens} tokens"),
        ("Prompt", f"{usage.prompt_tokens} tokens, {_pictures(usage.images_encoded)}"),
        ("Decoded", f"{usage.decoded_tokens} tokens; the answer has {len(trace.token_ids)}"),
    ]
    if ending := ending_line(trace):
        rows.append(("Ended", ending))
    if trace.search.nodes:
        rows += [
            ("Judged", f"{usage.judge_tokens} tokens"),
            (
                "Reused",
                f"{usage.reused_tokens} tokens; a run without reuse would have computed "
                f"{computed + usage.reused_tokens} instead of {computed}",
            ),
        ]
    rows.append(("Time", f"{format_seconds(timings.total_s)} in all"))
    memory = [f"{format_bytes(usage.kv_bytes)} of keys and values"] if usage.kv_bytes else []
    if trace.peak_memory_bytes:
        memory.insert(0, f"{format_bytes(trace.peak_memory_bytes)} at the peak")
    if memory:
        rows.append(("Memory", ", ".join(memory)))
    return rows


def _pictures(count: int) -> str:
    return "no picture" if not count else f"{count} picture{'s' if count != 1 else ''} encoded"


def _plan_rows(plan: Mapping[str, object], *, is_search: bool) -> list[tuple[str, str]]:
    """The plan in words."""
    rows = [("Drawn at", f"temperature {plan['temperature']:g}, top-p {plan['top_p']:g}")]
    if not is_search:
        return rows
    steps = plan["steps"]
    assert isinstance(steps, list)
    described = []
    for step in steps:
        words = f"{step['write']} {step.get('candidates', 1)}"
        if step.get("candidates", 1) > 1:
            words += f" (keep {step.get('keep', 1)})"
        if "judge" in step:
            words += f" by {step['judge']}"
        described.append(words)
    rows += [("Judge", str(plan["judge"])), ("Candidates", " → ".join(described))]
    retrace = plan.get("retrace")
    if isinstance(retrace, dict):
        threshold = retrace.get("threshold")
        below = "" if threshold is None else f" while that is below {threshold:g}"
        rows.append(
            (
                "Goes back",
                f"from {retrace['after']} to {retrace['to']}, at most "
                f"{retrace['most']} times{below}",
            )
        )
    return rows
