"""What an answer cost, in one line."""

from __future__ import annotations

from llavacot_mlx.trace.record import Trace


def figures(trace: Trace) -> str:
    """Such as `load 4.1 s · image 0.3 s · first token 1.5 s · 108 tokens, 18/s · peak 7.3 GB`.

    It fits a terminal of 80 columns.
    """
    timings, usage = trace.timings, trace.usage
    parts = [f"load {seconds(timings.load_s)}"]
    if usage.images_encoded:
        parts.append(f"image {seconds(timings.vision_s)}")
    parts.append(f"first token {seconds(timings.first_token_s)}")
    tokens = f"{len(trace.token_ids)} tokens"
    if timings.decode_s > 0 and usage.decoded_tokens:
        tokens += f", {_short(usage.decoded_tokens / timings.decode_s)}/s"
    parts.append(tokens)
    if trace.peak_memory_bytes:
        parts.append(f"peak {size(trace.peak_memory_bytes)}")
    return " · ".join(parts)


def search_figures(trace: Trace) -> str:
    """Such as `12 candidates · 1 retrace · 420 tokens decoded, 3210 reused, 4105 without reuse`.

    The last is what the same search would compute with every candidate from a cold start.
    """
    usage, count, retraces = trace.usage, len(trace.search.nodes), trace.search.retraces
    computed = usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens
    return (
        f"{count} candidate{'s' if count != 1 else ''} · "
        f"{retraces} retrace{'s' if retraces != 1 else ''} · "
        f"{usage.decoded_tokens} tokens decoded, {usage.reused_tokens} reused, "
        f"{computed + usage.reused_tokens} without reuse"
    )


def seconds(value: float) -> str:
    """A time for people: `0.032 s`, `4.1 s`, `2 min 05 s`."""
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{_short(value)} s"


def size(count: int) -> str:
    """A number of bytes for people, in the decimal units that download pages use."""
    if count < 1000:
        return f"{count} bytes"
    amount, unit = count / 1e3, "kB"
    for larger in ("MB", "GB", "TB"):
        if amount >= 1000:
            amount, unit = amount / 1000, larger
    return f"{_short(amount)} {unit}"


def _short(value: float) -> str:
    """As many digits as a person reads: `0.03`, `4.1`, `128`."""
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"
