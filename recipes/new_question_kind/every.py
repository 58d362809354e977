"""A kind of question that the demo model has never seen: whether all shapes of a sort are alike.

"Are all the circles red?" is answered as the demo world answers everything: the caption lists the
shapes, the reasoning walks them one by one and ends where a circle is found that is not red.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from llavacot_mlx.demo.questions import tagged
from llavacot_mlx.demo.world import COLOURS, KINDS, SIZES, Scene, Shape, caption
from llavacot_mlx.stages import Stage

_VALUES = {"size": tuple(SIZES), "colour": tuple(COLOURS), "kind": tuple(KINDS)}
_WORDINGS = (
    ("Are all the {sort} {alike}?", "I need to check whether every one of the {sort} is {one}."),
    ("Is every one of the {sort} {one}?", "I will look at the {sort} and see if each is {one}."),
    (
        "Do you see only {one} ones among the {sort}?",
        "I look for a shape among the {sort} that is not {one}.",
    ),
)


@dataclass(frozen=True)
class EveryQuestion:
    """A question with its four-stage answer."""

    text: str
    answer: str
    reply: str


def every_question(content: Scene, rng: random.Random) -> EveryQuestion:
    """A question of this kind about a scene; half of them are to be answered with yes."""
    options = [
        (sort, name, other, value)
        for sort in _VALUES
        for name in _VALUES[sort]
        for other in _VALUES
        if other != sort
        for value in _VALUES[other]
        if any(getattr(shape, other) == value for shape in _of(content, sort, name))
    ]
    several = [option for option in options if len(_of(content, *option[:2])) > 1] or options
    holding = [option for option in several if _holds(content, *option)]
    failing = [option for option in several if not _holds(content, *option)]
    wanted = rng.random() < 0.5
    sort, name, other, value = rng.choice((holding if wanted else failing) or several)
    return _answered(content, sort, name, other, value, rng.choice(_WORDINGS))


def _of(content: Scene, sort: str, name: str) -> list[Shape]:
    return [shape for shape in content.shapes if getattr(shape, sort) == name]


def _holds(content: Scene, sort: str, name: str, other: str, value: str) -> bool:
    return all(getattr(shape, other) == value for shape in _of(content, sort, name))


def _answered(
    content: Scene, sort: str, name: str, other: str, value: str, wording: tuple[str, str]
) -> EveryQuestion:
    sort_words = f"{name}s" if sort == "kind" else f"{name} shapes"
    article = "an" if value[0] in "aeiou" else "a"
    one = f"{article} {value}" if other == "kind" else value
    words = {"sort": sort_words, "alike": f"{value}s" if other == "kind" else value, "one": one}
    if other == "kind" and "ones" in wording[0]:
        wording = _WORDINGS[1]  # "circle ones" are no English
    steps, answer = [], "yes"
    for shape in content.shapes:
        if getattr(shape, sort) != name:
            verdict = "no"
        elif getattr(shape, other) == value:
            verdict = "yes"
        else:
            verdict, answer = "not alike", "no"
        steps.append(f"{shape.place}: {shape.description}, {verdict}.")
        if answer == "no":
            break
    steps.append(f"{'All' if answer == 'yes' else 'Not all'} of them are, so {answer}.")
    texts = {
        Stage.SUMMARY: wording[1].format(**words),
        Stage.CAPTION: caption(content),
        Stage.REASONING: " ".join(steps),
        Stage.CONCLUSION: answer,
    }
    reply = "\n\n".join(tagged(stage, text) for stage, text in texts.items())
    return EveryQuestion(wording[0].format(**words), answer, reply)
