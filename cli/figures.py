"""What an answer cost, in one line."""

from __future__ import annotations

from llavacot_mlx.trace import Trace


def figures(trace: Trace) -> str:
    """Such as `load 0.4 s · image 0.12 s · first token 0.3 s · 45 tokens/s · 87 tokens · …`."""
    timings, usage = trace.timings, trace.usage
    parts = [f"load {seconds(timings.load_s)}"]
    if usage.images_encoded:
        parts.append(f"image {seconds(timings.vision_s)}")
    parts.append(f"first token {seconds(timings.first_token_s)}")
    if timings.decode_s > 0 and usage.decoded_tokens:
        parts.append(f"{_three_digits(usage.decoded_tokens / timings.decode_s)} tokens/s")
    parts.append(f"{len(trace.token_ids)} tokens")
    if trace.peak_memory_bytes:
        parts.append(f"peak memory {size(trace.peak_memory_bytes)}")
    return " · ".join(parts)


def seconds(value: float) -> str:
    """A time for people: `0.032 s`, `4.1 s`, `2 min 05 s`."""
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{_three_digits(value)} s"


def size(count: int) -> str:
    """A number of bytes for people, in the decimal units that download pages use."""
    if count < 1000:
        return f"{count} bytes"
    amount, unit = count / 1e3, "kB"
    for larger in ("MB", "GB", "TB"):
        if amount >= 1000:
            amount, unit = amount / 1000, larger
    return f"{_three_digits(amount)} {unit}"


def _three_digits(value: float) -> str:
    """Two or three meaningful digits, never an exponent."""
    if value >= 10:
        return f"{value:.0f}"
    if value >= 1:
        return f"{value:.1f}"
    return f"{value:.2f}"
