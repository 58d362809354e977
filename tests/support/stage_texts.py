"""Texts for hypothesis that are full of tags, and the stages that are read in them, compared."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from llavacot_mlx.prompt.stages import Stage, StageEvent, Text

TAGS = [tag for stage in Stage for tag in (stage.opening, stage.closing)]
SPOKEN = [f"(Here {verb} the {stage.tag} stage)" for stage in Stage for verb in ("begins", "ends")]
LOOSE = [
    *("<conclusion>", "</Conclusion>", "< CAPTION >", "</ reasoning>", "<Reasoning>"),
    *("**<CONCLUSION>**", "**</CONCLUSION>**", "**<caption>", "_<SUMMARY>_", "**", "*", "# "),
    *("**CONCLUSION:**", "Conclusion:", "## Conclusion", "**Conclusion**", "**CONCLUSION: "),
]
# Whole tags, beginnings and ends of tags, line breaks, quotes, letters of many bytes, and anything.
PIECES = st.one_of(
    st.sampled_from([*TAGS, *SPOKEN, "<", "</", "(Here ", ">", "<SUMM", "ARY>"]),
    st.sampled_from(LOOSE),
    st.sampled_from(["\n", "\n\n", "\r\n", " "]),
    st.sampled_from([*TAGS, *SPOKEN, *LOOSE]).flatmap(lambda tag: st.integers(1, len(tag)).map(
        lambda length: tag[:length])),
    st.sampled_from(["🙂", "👩\u200d👧", "e\u0301", "這是", "\ufffd", '"', "“", "'", "<|eot_id|>"]),
    st.text(max_size=5),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)


def joined(events: Iterable[StageEvent]) -> list[StageEvent]:
    """The events with adjacent text of one stage as one event."""
    result: list[StageEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Text) and isinstance(last, Text) and event.stage == last.stage:
            result[-1] = Text(event.stage, last.text + event.text)
        else:
            result.append(event)
    return result
