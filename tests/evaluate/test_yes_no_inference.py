"""The vectors of VLMEvalKit's own function."""

from __future__ import annotations

import pytest

from llavacot_mlx.evaluate.yes_no_inference import infer_yes_or_no

YES = [
    *("Yes", "yes.", "YES!", '"Yes"', "Yes;it", "it is 1,000 so yes"),
    *("<CONCLUSION>Yes</CONCLUSION>", "yes" + 40 * " a."),
]
NO = ["No, it is not.", "The answer is no.", "<CONCLUSION> No </CONCLUSION>"]
NEITHER = [
    *("**Yes**", "Yes: it is", "'yes'", "No. Yes", "Yes, no doubt", "None", "not", ""),
    40 * "a. " + "yes.",
]


@pytest.mark.parametrize(
    ("text", "said"),
    [*((t, "Yes") for t in YES), *((t, "No") for t in NO), *((t, None) for t in NEITHER)],
)
def test_whether_a_text_says_yes_or_no(text: str, said: str | None) -> None:
    assert infer_yes_or_no(text) == said
