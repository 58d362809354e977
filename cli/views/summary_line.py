"""The lines under an answer that say what it cost: seconds, tokens, memory."""

from __future__ import annotations

from llavacot_mlx.cli.units import format_bytes, format_number, format_seconds
from llavacot_mlx.trace.record import Trace


def summary_line(trace: Trace) -> str:
    """Such as `load 4.1 s · image 0.3 s · first token 1.5 s · 108 tokens, 18/s · peak 7.3 GB`.

    It fits a terminal of 80 columns.
    """
    timings, usage = trace.timings, trace.usage
    parts = [f"load {format_seconds(timings.load_s)}"]
    if usage.images_encoded:
        parts.append(f"image {format_seconds(timings.vision_s)}")
    parts.append(f"first token {format_seconds(timings.first_token_s)}")
    tokens = f"{len(trace.token_ids)} tokens"
    if timings.decode_s > 0 and usage.decoded_tokens:
        tokens += f", {format_number(usage.decoded_tokens / timings.decode_s)}/s"
    parts.append(tokens)
    if trace.peak_memory_bytes:
        parts.append(f"peak {format_bytes(trace.peak_memory_bytes)}")
    return " · ".join(parts)


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
