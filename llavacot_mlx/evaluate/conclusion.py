"""What of an answer is scored: its conclusion, or the whole text."""

from __future__ import annotations

import enum

from llavacot_mlx.prompt.stages import Stage

_OPENING, _CLOSING = Stage.CONCLUSION.opening, Stage.CONCLUSION.closing


class AnswerFrom(enum.StrEnum):
    """Which part of a model's text is its answer."""

    CONCLUSION = "conclusion"
    WHOLE = "whole"


def prediction(text: str, answer_from: AnswerFrom = AnswerFrom.CONCLUSION) -> str:
    """The part of a text that is scored, without surrounding white space.

    It is what stands between the first `<CONCLUSION>` and the next `</CONCLUSION>`, as the model
    card of LLaVA-CoT has it. Without the closing tag it is everything after the opening one, and
    without that the whole text.
    """
    if answer_from is AnswerFrom.CONCLUSION:
        _, opened, rest = text.partition(_OPENING)
        if opened:
            text = rest.partition(_CLOSING)[0]
    return text.strip()
