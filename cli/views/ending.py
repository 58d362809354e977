"""What is said about the end of an answer: what cut it off, or why it has no conclusion."""

from __future__ import annotations

from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import Trace


def ending_line(trace: Trace) -> str:
    """What the answer was cut off by, and how its conclusion was found; empty if all is usual."""
    parts = [_cut_off(trace), trace.answer_note and f"conclusion: {trace.answer_note}"]
    return " · ".join(filter(None, parts))


def no_conclusion(trace: Trace) -> str:
    """Why there is no answer, and what to do, in one line."""
    empty = trace.answer is not None
    wrote = "the model's conclusion is empty" if empty else "the model wrote no conclusion"
    cut, advice = _cut_off(trace), "see what it wrote with --show all"
    if trace.finish is Finish.LENGTH and cut.startswith("stopped at --max-tokens"):
        advice += ", or raise --max-tokens"
    elif trace.finish is Finish.REPETITION:
        advice += ", or try --temperature 0.6"
    reason = cut or ("it ended its answer without one" if not empty else "")
    return f"{': '.join(filter(None, (wrote, reason)))}; {advice}"


def _cut_off(trace: Trace) -> str:
    match trace.finish:
        case Finish.LENGTH:
            return f"stopped at {_limit(trace)}"
        case Finish.REPETITION:
            return (
                f"stopped after {len(trace.token_ids)} tokens because it only repeated itself; "
                "--no-repetition-stop lets it go on"
            )
        case Finish.INTERRUPTED:
            return "interrupted"
    return ""


def _limit(trace: Trace) -> str:
    if len(trace.token_ids) >= trace.max_tokens:
        return f"--max-tokens {trace.max_tokens}"
    if any("max_tokens" in step for step in trace.search.plan.get("steps", ())):
        return "the max_tokens of a step of the plan"
    return "the longest text that the model can read"
