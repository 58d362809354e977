"""The texts of all judges' questions, by stage."""

from __future__ import annotations

from llavacot_mlx.prompt.stages import Stage

# Of `self`, after the answer so far. The demo model was trained on these texts and knows no others.
IS_IT_RIGHT = {
    Stage.SUMMARY: "Is this summary right? Answer yes or no.",
    Stage.CAPTION: "Is this caption right? Answer yes or no.",
    Stage.REASONING: "Is this reasoning right? Answer yes or no.",
    Stage.CONCLUSION: "Is this conclusion right? Answer yes or no.",
}

# Of `pairwise`: what makes one text better than another. The points are those that the authors of
# LLaVA-CoT ask about in their stage-level beam search (inference/VLMEvalKit/inference_demo.py).
WHAT_IS_BETTER = {
    Stage.SUMMARY: "The better summary plans how to solve the problem and does not solve it yet.",
    Stage.CAPTION: "The better caption says more of what the question needs from the picture, in "
    "detail, and says nothing that is not there.",
    Stage.REASONING: "The better reasoning has fewer mistakes in its steps and its calculations.",
    Stage.CONCLUSION: "The better conclusion answers the question, and says what the reasoning "
    "before it found.",
}
WHICH_ANSWERS_BETTER = "The better one answers the question rightly, with fewer mistakes."
"""For candidates that span several stages."""


def first_or_second(what_is_better: str) -> tuple[str, str, str]:
    """Returns the question's texts before, between and after the two that are compared."""
    return (
        "Compare two texts that could come next in the answer to my question.\n\nText 1:\n",
        "\n\nText 2:\n",
        f"\n\n{what_is_better} Which text is better? Answer with its number alone, 1 or 2.",
    )


def is_it_right(question: str, stage: Stage | None, text: str) -> str:
    """Returns the question for an external model, which sees the image and nothing of the
    conversation."""
    part = "an answer" if stage is None else f"the {stage} of an answer"
    return (
        f"Question: {question}\n\nThis is {part} to it:\n\n{text}\n\nIs it right? Answer yes or no."
    )
