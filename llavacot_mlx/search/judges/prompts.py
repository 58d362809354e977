"""The texts of all judges' questions, by stage."""

from __future__ import annotations

from llavacot_mlx.prompt.stages import Stage

# The question of `self`, asked after the answer so far. The demo model was trained on these texts
# and knows no others.
SELF_QUESTIONS = {
    Stage.SUMMARY: "Is this summary right? Answer yes or no.",
    Stage.CAPTION: "Is this caption right? Answer yes or no.",
    Stage.REASONING: "Is this reasoning right? Answer yes or no.",
    Stage.CONCLUSION: "Is this conclusion right? Answer yes or no.",
}

# What makes one text better than another for `pairwise`. The authors of LLaVA-CoT ask about the
# same points in their stage-level beam search (inference/VLMEvalKit/inference_demo.py).
PAIRWISE_CRITERIA = {
    Stage.SUMMARY: "The better summary plans how to solve the problem and does not solve it yet.",
    Stage.CAPTION: "The better caption says more of what the question needs from the picture, in "
    "detail, and says nothing that is not there.",
    Stage.REASONING: "The better reasoning has fewer mistakes in its steps and its calculations.",
    Stage.CONCLUSION: "The better conclusion answers the question, and says what the reasoning "
    "before it found.",
}
WHOLE_ANSWER_CRITERION = "The better one answers the question rightly, with fewer mistakes."
"""The criterion for candidates that span several stages."""


def pairwise_question(criterion: str) -> tuple[str, str, str]:
    """Returns the question's texts before, between and after the two compared texts."""
    return (
        "Compare two texts that could come next in the answer to my question.\n\nText 1:\n",
        "\n\nText 2:\n",
        f"\n\n{criterion} Which text is better? Answer with its number alone, 1 or 2.",
    )


def yes_or_no_question(question: str, stage: Stage | None, text: str) -> str:
    """Returns the question for an external model, which sees the image but not the conversation."""
    part = "an answer" if stage is None else f"the {stage} of an answer"
    return (
        f"Question: {question}\n\nThis is {part} to it:\n\n{text}\n\nIs it right? Answer yes or no."
    )
