"""The lines under an answer that say what it cost: seconds, tokens, memory."""

from __future__ import annotations

from llavacot_mlx.cli.units import format_bytes, format_number, format_seconds
from llavacot_mlx.trace.record import Trace


def summary_lines(trace: Trace, waited_s: float | None = None) -> list[str]:
    """The seconds and the memory of an answer, in two lines that fit a terminal of 80 columns:

        9.6 s in all: start 0.4 s · load 4.1 s · image 0.3 s · first token 1.5 s
        108 tokens, 18/s · peak 7.3 GB

    `waited_s` is how long the person waited in all; None for a stored answer, whose start of the
    program nobody measured.
    """
    timings, usage = trace.timings, trace.usage
    measured = timings.load_s + timings.total_s
    parts = [f"load {format_seconds(timings.load_s)}"]
    if waited_s is not None:
        parts.insert(0, f"start {format_seconds(max(0.0, waited_s - measured))}")
    if usage.images_encoded:
        parts.append(f"image {format_seconds(timings.vision_s)}")
    parts.append(f"first token {format_seconds(timings.first_token_s)}")
    total = measured if waited_s is None else waited_s
    tokens = f"{len(trace.token_ids)} tokens"
    if timings.decode_s > 0 and usage.decoded_tokens:
        tokens += f", {format_number(usage.decoded_tokens / timings.decode_s)}/s"
    if trace.peak_memory_bytes:
        tokens += f" · peak {format_bytes(trace.peak_memory_bytes)}"
    return [f"{format_seconds(total)} in all: {' · '.join(parts)}", tokens]


def search_summary_line(trace: Trace) -> str:
    """Such as `12 candidates · 1 retrace · 420 tokens decoded, 3210 reused, 4105 without reuse`.

    The last number is what the search would compute if every candidate began from a cold start.
    """
    usage, count, retraces = trace.usage, len(trace.search.nodes), trace.search.retraces
    computed = usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens
    return (
        f"{count} candidate{'s' if count != 1 else ''} · "
        f"{retraces} retrace{'s' if retraces != 1 else ''} · "
        f"{usage.decoded_tokens} tokens decoded, {usage.reused_tokens} reused, "
        f"{computed + usage.reused_tokens} without reuse"
    )
