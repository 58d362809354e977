"""A kind of question that the demo model has never seen: whether there are at least so many.

"Are there at least 3 red shapes?" is answered as the demo world answers everything: the caption
lists the shapes, the reasoning counts along them, and then the count is held against the number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from llavacot_mlx.demo.questions import tagged
from llavacot_mlx.demo.world import COLOURS, KINDS, SIZES, Scene, Target, caption
from llavacot_mlx.stages import Stage

_WORDINGS = (
    ("Are there at least {number} {many}?", "I need to see if there are at least {number} {many}."),
    ("Do you see {number} or more {many}?", "I will check for {number} or more {many}."),
    (
        "Is the number of {many} at least {number}?",
        "The question asks if the number of {many} is at least {number}.",
    ),
)
_LEAST = 2  # "at least 1" would be a question of an old kind: whether there is any


@dataclass(frozen=True)
class AtLeastQuestion:
    """A question with its four-stage answer."""

    text: str
    answer: str
    reply: str


def at_least_question(content: Scene, rng: random.Random) -> AtLeastQuestion:
    """A question of this kind about a scene; half of them are to be answered with yes."""
    counts = {target: sum(map(target.matches, content.shapes)) for target in _targets()}
    several = [target for target, count in counts.items() if count >= _LEAST]
    some = [target for target, count in counts.items() if count]
    if several and rng.random() < 0.5:
        target = rng.choice(several)
        number = rng.randint(_LEAST, counts[target])
    else:
        target = rng.choice(several or some) if rng.random() < 0.7 else rng.choice(some)
        number = max(_LEAST, counts[target] + rng.randint(1, 2))
    return _answered(content, target, number, rng.choice(_WORDINGS))


def _targets() -> list[Target]:
    return [
        *(Target(colour=colour) for colour in COLOURS),
        *(Target(kind=kind) for kind in KINDS),
        *(Target(size=size) for size in SIZES),
    ]


def _answered(
    content: Scene, target: Target, number: int, wording: tuple[str, str]
) -> AtLeastQuestion:
    steps, count = [], 0
    for shape in content.shapes:
        verdict = "no"
        if target.matches(shape):
            count += 1
            verdict = f"yes ({count})"
        steps.append(f"{shape.place}: {shape.description}, {verdict}.")
    sign = ">" if count > number else "<" if count < number else "="
    answer = "no" if count < number else "yes"
    steps.append(f"The count is {count}. {count} {sign} {number}, so {answer}.")
    texts = {
        Stage.SUMMARY: wording[1].format(number=number, many=target.many),
        Stage.CAPTION: caption(content),
        Stage.REASONING: " ".join(steps),
        Stage.CONCLUSION: answer,
    }
    reply = "\n\n".join(tagged(stage, text) for stage, text in texts.items())
    return AtLeastQuestion(wording[0].format(number=number, many=target.many), answer, reply)
