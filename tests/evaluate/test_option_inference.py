"""The vectors of VLMEvalKit's own functions, at the commits that the scorers are named after."""

from __future__ import annotations

import pytest

from llavacot_mlx.evaluate.option_inference import Scorer, infer_option

OPTIONS = {
    "A": "The suitcase is on the book.",
    "B": "beneath the cat",
    "C": "beneath the bed",
    "D": "a red bus",
}
LONG = "Option C is right because the red bus is next to it and nothing else is seen in the picture"
VECTORS = [
    *((text, "B", "B") for text in ("B", "(B)", "B.", "**B**", "The answer is B: beneath the cat")),
    *((text, None, None) for text in ("b", "B-", "B/C", '"B"', "$B$", "E", "")),
    ("<CONCLUSION> B </CONCLUSION>", "B", "B"),
    ("<CONCLUSION>B</CONCLUSION>", None, None),
    ("A red bus", "A", "A"),
    ("a red bus", "D", "D"),
    ("A cat is beneath the cat, so B", "B", "B"),
    ("Answer: A or B", None, None),
    ("B, D", None, None),
    ("Cannot determine the answer", "Z", "Z"),
    ("Z", "Z", "Z"),
    ("It is beneath the cat and beneath the bed", None, None),
    ("The correct answer is **B**. Here's why:" + " word" * 14, "B", "B"),
    (LONG, "C", None),
]


@pytest.mark.parametrize(("text", "in_2024", "in_2026"), VECTORS)
def test_options_that_a_text_chooses(text: str, in_2024: str | None, in_2026: str | None) -> None:
    assert infer_option(text, OPTIONS, Scorer.VLMEVAL_2024) == in_2024
    assert infer_option(text, OPTIONS, Scorer.VLMEVAL_2026) == in_2026


@pytest.mark.parametrize(
    ("text", "in_2024", "in_2026"),
    [("12", None, None), ("1", "A", "A"), ("14", None, None), ("There are 2 objects", "C", None)],
)
def test_options_that_are_part_of_each_other(
    text: str, in_2024: str | None, in_2026: str | None
) -> None:
    options = {"A": "1", "B": "12", "C": "2", "D": "4"}
    assert infer_option(text, options, Scorer.VLMEVAL_2024) == in_2024
    assert infer_option(text, options, Scorer.VLMEVAL_2026) == in_2026


def test_a_refusal_chooses_none_and_a_failure_of_the_api_says_nothing() -> None:
    assert infer_option("Sorry, I can't help with images of people yet. B", OPTIONS) == "Z"
    assert infer_option("Failed to obtain answer via API. B", OPTIONS) is None
