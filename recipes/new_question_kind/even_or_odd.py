"""Makes a kind of question that the demo model has never seen: is a number even or odd?

"Is the number of red shapes even or odd?" is answered as the demo world answers everything: the
caption lists the shapes, the reasoning counts along them, and then says what the count is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from llavacot_mlx.demo.questions import tagged
from llavacot_mlx.demo.world import COLOURS, KINDS, SIZES, Scene, Target, caption
from llavacot_mlx.prompt.stages import Stage

_WORDINGS = (
    ("Is the number of {many} even or odd?", "I need to see if the number of {many} is even."),
    ("Are the {many} an even or an odd number?", "I will count the {many} and see if it is odd."),
    ("Even or odd: how many {many} are there?", "I count the {many}, and say even or odd."),
)


@dataclass(frozen=True)
class ParityQuestion:
    """A question with its four-stage answer."""

    text: str
    answer: str
    reply: str


def parity_question(content: Scene, rng: random.Random) -> ParityQuestion:
    """A question of this kind about a scene; the answer to half of them is even."""
    counts = {target: sum(map(target.matches, content.shapes)) for target in _targets()}
    wanted = rng.randrange(2)
    fitting = [target for target, count in counts.items() if count and count % 2 == wanted]
    # If no sort of shapes occurs an even number of times, a missing sort is asked for: 0 is even.
    absent = [target for target, count in counts.items() if count % 2 == wanted]
    target = rng.choice(fitting or absent or list(counts))
    return _answered(content, target, rng.choice(_WORDINGS))


def _targets() -> list[Target]:
    return [
        *(Target(colour=colour) for colour in COLOURS),
        *(Target(kind=kind) for kind in KINDS),
        *(Target(size=size) for size in SIZES),
    ]


def _answered(content: Scene, target: Target, wording: tuple[str, str]) -> ParityQuestion:
    steps, count = [], 0
    for shape in content.shapes:
        verdict = "no"
        if target.matches(shape):
            count += 1
            verdict = f"yes ({count})"
        steps.append(f"{shape.place}: {shape.description}, {verdict}.")
    answer = "odd" if count % 2 else "even"
    steps.append(f"The count is {count}. It is {answer}.")
    texts = {
        Stage.SUMMARY: wording[1].format(many=target.many),
        Stage.CAPTION: caption(content),
        Stage.REASONING: " ".join(steps),
        Stage.CONCLUSION: answer,
    }
    reply = "\n\n".join(tagged(stage, text) for stage, text in texts.items())
    return ParityQuestion(wording[0].format(many=target.many), answer, reply)
