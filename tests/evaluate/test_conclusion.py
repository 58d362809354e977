"""What of an answer is scored."""

from __future__ import annotations

import pytest

from llavacot_mlx.evaluate.conclusion import AnswerFrom, prediction


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("<REASONING> A. </REASONING>\n\n<CONCLUSION> B </CONCLUSION> C", "B"),
        ("<CONCLUSION> A </CONCLUSION> <CONCLUSION> B </CONCLUSION>", "A"),
        ("<CONCLUSION> B and so", "B and so"),
        ("  The answer is B. ", "The answer is B."),
        ("<CONCLUSION></CONCLUSION>", ""),
    ],
)
def test_the_conclusion_is_scored(text: str, scored: str) -> None:
    assert prediction(text) == scored


def test_the_whole_text_is_scored_where_that_is_asked_for() -> None:
    text = "<CONCLUSION> B </CONCLUSION>"
    assert prediction(text, AnswerFrom.WHOLE) == text
