"""The texts that the benchmarks ask, exactly as in the paper's evaluation.

Sources: VLMEvalKit `vlmeval/dataset/image_mcq.py` (7de2dcbc), LLaVA-CoT
`inference/VLMEvalKit/inference_demo.py`, MathVista `build_query.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def choice_prompt(question: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """The text of MMStar and MMBench; it ends in a space and a line break."""
    lines = [f"Hint: {hint}"] if hint else []
    lines += [f"Question: {question}"]
    if options:
        lines += ["Options:", *(f"{letter}. {text}" for letter, text in options.items())]
    lines += ["Please select the correct answer from the options above. "]
    return "\n".join(lines) + "\n"


def ai2d_prompt(question: str, options: Mapping[str, str]) -> str:
    """The text of AI2D, as the authors changed it."""
    lines = [
        "Look at the scientific diagram carefully and answer the following question: " + question,
        *(f"{letter}. {text}" for letter, text in options.items()),
        "Respond only with the correct option digit.",
    ]
    return "\n".join(lines)


def mathvista_prompt(
    question: str,
    *,
    answer_type: str,
    precision: int | None = None,
    unit: str | None = None,
    choices: Sequence[str] = (),
) -> str:
    """MathVista's query, for files that have the question without it.

    `answer_type` is text, integer, float or list; a question with `choices` asks for a letter.
    """
    lines = [f"Hint: {_mathvista_hint(answer_type, precision, bool(choices))}"]
    lines.append(f"Question: {question}" + (f" (Unit: {unit})" if unit else ""))
    if choices:
        lettered = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", choices, strict=False)
        lines += ["Choices:", *(f"({letter}) {text}" for letter, text in lettered)]
    return "\n".join(lines)


def _mathvista_hint(answer_type: str, precision: int | None, has_choices: bool) -> str:
    if has_choices:
        return (
            "Please answer the question and provide the correct option letter, "
            "e.g., A, B, C, D, at the end."
        )
    if answer_type == "float":
        places, examples = ("one decimal place", "1.2, 1.3, 1.4")
        if precision == 2:
            places, examples = ("two decimal places", "1.23, 1.34, 1.45")
        return (
            f"Please answer the question requiring a floating-point number with {places} and "
            f"provide the final value, e.g., {examples}, at the end."
        )
    if answer_type == "list":
        return (
            "Please answer the question requiring a Python list as an answer and provide the final "
            "list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end."
        )
    return (
        "Please answer the question requiring an integer answer and provide the final value, "
        "e.g., 1, 2, 3, at the end."
    )
