"""Makes judge questions: is the last stage of an answer right, yes or no?

The search scores a candidate by the probability of "yes" to these questions, so the demo model
is trained on them, with planted mistakes in half of the rows. A judge question is a user turn
after the assistant's answer so far, which `<|eot_id|>` ends at any point:

    user: QUESTION
    assistant: <SUMMARY> … </SUMMARY> <CAPTION> … </CAPTION>
    user: Is this caption right? Answer yes or no.
    assistant: yes

The judged stage is always the last one. It may still be open, after any sentence. After a closing
tag, the blank line before the next stage may or may not have been written.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from llavacot_mlx.demo.questions import (
    LETTERS,
    QUESTION_KINDS,
    Question,
    answered,
    question_of,
    tagged,
)
from llavacot_mlx.demo.scenes import COLOURS, HORIZONTAL, KINDS, SIZES, VERTICAL, Scene, Shape
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.judges.prompts import SELF_QUESTIONS

OPEN_SHARE = 0.2  # fraction of judged captions and reasonings that are cut before their end
LAST_STEP_SHARE = 0.4  # fraction of mistakes in a reasoning or conclusion that are in its last step
_STAGE_SHARES = {
    Stage.SUMMARY: 1,
    Stage.CAPTION: 4,
    Stage.REASONING: 4,
    Stage.CONCLUSION: 3,
}


@dataclass(frozen=True)
class JudgeQuestion:
    """A question, the assistant's answer so far, and the judge's question about it.

    `partial` is the assistant's text, tags included; its last stage is `stage`, which holds
    `judged`. `answer` is "yes" or "no".
    """

    stage: Stage
    question: Question
    partial: str
    judged: str
    text: str
    answer: str


def judge_question(scene: Scene, question: Question, rng: random.Random) -> JudgeQuestion:
    """A judge question about an answer to `question`; "no" in about half of the draws."""
    stages, weights = tuple(_STAGE_SHARES), tuple(_STAGE_SHARES.values())
    stage = rng.choices(stages, weights=weights)[0]
    answered_as, judged = question, question.stage_text(stage)
    if rng.random() < 0.55:  # a misread shape does not always make a conclusion wrong
        answered_as, judged = _planted(scene, question, stage, rng)
    opened = stage in (Stage.CAPTION, Stage.REASONING) and rng.random() < OPEN_SHARE
    if opened:
        sentences = judged.split(". ")
        judged = ". ".join(sentences[: rng.randint(1, len(sentences))]).removesuffix(".") + "."
    truth = question.stage_text(stage)
    right = truth.startswith(judged) if opened else judged == truth
    order = list(Stage)
    before = [tagged(past, answered_as.stage_text(past)) for past in order[: order.index(stage)]]
    last = f"{stage.opening} {judged}" if opened else tagged(stage, judged)
    if not opened and stage is not Stage.CONCLUSION and rng.random() < 0.5:
        last += "\n\n"  # a tokenizer may hold the blank line in one token with the tag's end
    return JudgeQuestion(
        stage=stage,
        question=question,
        partial="\n\n".join([*before, last]),
        judged=judged,
        text=SELF_QUESTIONS[stage],
        answer="yes" if right else "no",
    )


def _planted(
    scene: Scene, question: Question, stage: Stage, rng: random.Random
) -> tuple[Question, str]:
    """A question whose stages come before the judged one, and the judged text, mostly wrong."""
    if stage is Stage.SUMMARY:
        if _SLIPPERY.search(question.summary):
            return question, slip(question.summary, rng)
        others = [kind for kind in QUESTION_KINDS if kind != question.kind]
        other = question_of(rng.choice(others), scene, rng)
        return question, (other or question).summary
    if stage in (Stage.REASONING, Stage.CONCLUSION) and rng.random() < LAST_STEP_SHARE:
        misled = wrong_last_step(question, rng)
        return misled, misled.stage_text(stage)
    if rng.random() < 0.45:
        for _ in range(4):  # most misread shapes do not change a conclusion
            misled = answered(question.query, misread(scene, rng))
            if misled.stage_text(stage) != question.stage_text(stage):
                break
        return misled, misled.stage_text(stage)
    return question, slip(question.stage_text(stage), rng, _letters(question))


def wrong_last_step(question: Question, rng: random.Random) -> Question:
    """The question with a wrong last step of its reasoning, and the answer that follows from it.

    These are mistakes of a model that has read the picture well: the letter of another
    option, or a yes where the numbers or places before it say no.
    """
    answer, reasoning = question.answer, question.reasoning
    if question.choices:
        wrong = rng.choice(_letters(question).replace(answer, ""))
        reasoning = _ending_in(reasoning, answer, wrong)
        if rng.random() < 0.5:  # not only the letter
            meant, said = (question.choices[LETTERS.index(letter)] for letter in (answer, wrong))
            reasoning = _ending_in(reasoning, meant, said)
    else:
        wrong = slip(answer, rng)
        reasoning = _ending_in(reasoning, answer, wrong)
    return replace(question, reasoning=reasoning, answer=wrong)


def _ending_in(reasoning: str, answer: str, wrong: str) -> str:
    """The reasoning with its last mention of the answer, in words or as a letter, replaced."""
    one, none = "One is found.", "None is found."
    if answer in ("yes", "no") and (one in reasoning or none in reasoning):
        old, new = (one, none) if one in reasoning else (none, one)
        return reasoning.replace(old, new)
    before, _, after = reasoning.rpartition(answer)
    return before + wrong + after


def _letters(question: Question) -> str:
    """The letters of the question's options."""
    return LETTERS[: len(question.choices)]


def misread(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one shape changed, missing, moved to a free cell, or invented."""
    shapes = list(scene.shapes)
    taken = {shape.place for shape in shapes}
    free = [place for place in scene.layout.places() if place not in taken]
    index = rng.randrange(len(shapes))
    mistake = rng.random()
    if mistake < 0.15 and len(shapes) > 2:
        del shapes[index]
    elif mistake < 0.3 and free and len(shapes) < scene.layout.max_shapes:
        invented = Shape(
            size=rng.choice(SIZES),
            colour=rng.choice(tuple(COLOURS)),
            kind=rng.choice(KINDS),
            place=rng.choice(free),
        )
        shapes.append(invented)
    elif mistake < 0.4 and free:
        shapes[index] = replace(shapes[index], place=rng.choice(free))
    else:
        shapes[index] = _seen_wrongly(shapes[index], rng)
    order = scene.layout.places()
    shapes.sort(key=lambda shape: order.index(shape.place))
    return replace(scene, shapes=tuple(shapes))


def _seen_wrongly(shape: Shape, rng: random.Random) -> Shape:
    attribute = rng.choice(("size", "colour", "colour", "kind", "kind"))
    if attribute == "size":
        return replace(shape, size=_other(SIZES, shape.size, rng))
    if attribute == "colour":
        return replace(shape, colour=_other(tuple(COLOURS), shape.colour, rng))
    return replace(shape, kind=_other(KINDS, shape.kind, rng))


def slip(text: str, rng: random.Random, letters: str = "") -> str:
    """The text with one meaningful word replaced by another word of its sort.

    `letters` are the letters of the question's options.
    """
    places = list(_SLIPPERY.finditer(text))
    if not places:
        raise ValueError(f"no word of the world to change in {text!r}")
    chosen = rng.choice(places)
    word = _replacement(chosen.group(), rng, letters)
    return text[: chosen.start()] + word + text[chosen.end() :]


def slips(
    text: str, share: float, rng: random.Random, letters: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """The text with a fraction of its meaningful words replaced, and the spans of the new words.

    Spans are (start, end) in characters of the new text; `letters` as in `slip`.
    """
    made, places, end = "", [], 0
    for found in _SLIPPERY.finditer(text):
        made += text[end : found.start()]
        end = found.end()
        replaced = rng.random() < share
        word = _replacement(found.group(), rng, letters) if replaced else found.group()
        if replaced:
            places.append((len(made), len(made) + len(word)))
        made += word
    return made + text[end:], places


def _replacement(word: str, rng: random.Random, letters: str) -> str:
    if word in LETTERS:
        return rng.choice((letters or LETTERS).replace(word, ""))
    if word.isdigit():
        number = max(0, int(word) + rng.choice((-1, 1)))
        return str(number if number != int(word) else 1)
    sort = next(sort for sort in _SORTS if word in sort)
    return _other(sort, word, rng)


_SORTS = (
    SIZES,
    tuple(COLOURS),
    KINDS,
    tuple(f"{kind}s" for kind in KINDS),
    VERTICAL[3],
    HORIZONTAL[3],
    ("yes", "no"),
    ("first", "second"),
)
_SLIPPERY = re.compile(
    rf"\b(?:[0-9]+|[{LETTERS}]|" + "|".join(word for sort in _SORTS for word in sort) + r")\b"
)


def _other(words: tuple[str, ...], word: str, rng: random.Random) -> str:
    return rng.choice([other for other in words if other != word])
