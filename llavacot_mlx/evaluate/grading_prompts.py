"""What a grading model is asked. The texts are ours; they ask for what VLMEvalKit's ask for."""

from __future__ import annotations

from collections.abc import Mapping

_OPTION_EXAMPLE = """\
Question: What is the main object in the picture?
Options:
A. teddy bear
B. rabbit
C. cat
Answer: a cute teddy bear
Your output: A

Question: What is the main object in the picture?
Options:
A. teddy bear
B. rabbit
C. cat
Answer: Spider
Your output: Z
"""


def option_prompt(question: str, options: Mapping[str, str], answer: str) -> str:
    """Asks which option an answer means: a letter, or Z for none."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return (
        "Match an answer with the options of a multiple-choice question. Reply with the single "
        "capital letter of the option whose meaning is closest to the answer. Reply Z if none of "
        f"them has this meaning.\n\n{_OPTION_EXAMPLE}\nQuestion: {question}\nOptions:\n{listed}\n"
        f"Answer: {answer}\nYour output: "
    )


def yes_no_prompt(question: str, answer: str) -> str:
    """Asks whether an answer means yes or no."""
    return (
        "Decide whether an answer to a yes-or-no question means yes or no. Reply with the single "
        "word Yes or No. Reply Unknown if it means neither.\n\n"
        "Question: Is the word in this picture 'Hello'?\nAnswer: The word in this picture is "
        "'Hello'.\nYour output: Yes\n\n"
        "Question: Is the word in this picture 'Hello'?\nAnswer: The word is 'Hallo'.\n"
        f"Your output: No\n\nQuestion: {question}\nAnswer: {answer}\nYour output: "
    )


def value_prompt(question: str, answer: str) -> str:
    """Asks for the value that an answer to a question of MathVista gives."""
    return (
        "Extract the final value from an answer to a question, in the form that the question's "
        "hint asks for. Reply with the value alone, without its unit.\n\n"
        "Hint: Please answer the question requiring an integer answer and provide the final value, "
        "e.g., 1, 2, 3, at the end.\nQuestion: Which number is missing?\nAnswer: The missing "
        "number of the sequence is 14.\nExtracted: 14\n\n"
        "Hint: Please answer the question requiring a floating-point number with two decimal "
        "places and provide the final value, e.g., 1.23, 1.34, 1.45, at the end.\nQuestion: What "
        "is the fraction of women?\nAnswer: It is 0.80 of all.\nExtracted: 0.80\n\n"
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
        "at the end.\nQuestion: What fraction is blue?\nChoices:\n(A) 3/11\n(B) 8/11\nAnswer: The "
        f"correct answer is (B) 8/11.\nExtracted: B\n\n{question}\nAnswer: {answer}\nExtracted: "
    )


def grade_prompt(question: str, truth: str, answer: str) -> str:
    """Asks how correct an answer to a question of MM-Vet is, from 0.0 to 1.0."""
    truth = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return (
        "Compare the prediction with the ground truth, and give a correctness score for it. <AND> "
        "in the ground truth means that the prediction is right only if all its parts are there; "
        "<OR> means that any one of its parts is enough. The score is one of 0.0, 0.1, 0.2, 0.3, "
        "0.4, 0.5, 0.6, 0.7, 0.8, 0.9 and 1.0. Reply with the score alone.\n\n"
        "Question | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\n"
        "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n"
        "What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5\n"
        "What is x in the equation? | -1 <AND> -5 | x = -5 or x = 5 | 0.5\n"
        "What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
        "What is x in the equation? | -1 <OR> -5 | x = -5 | 1.0\n"
        f"{question} | {truth} | {answer} | "
    )
