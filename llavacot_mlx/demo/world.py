"""The little world that the demo model knows, through one door.

`scene(seed)` makes a picture's content, `draw(scene)` the picture, `questions(scene, rng)` the
questions with their four-stage answers, `judge_question(scene, question, rng)` what a judge
asks about an answer. Pure Python and Pillow; everything follows from seeds. The splits' seeds
do not overlap: the published figures are of `TEST`, and a judge's mean and deviation are to be
measured on `CALIBRATION`.
"""

from llavacot_mlx.demo.drawing import draw
from llavacot_mlx.demo.judging import JudgeQuestion, judge_question, slips
from llavacot_mlx.demo.questions import (
    QUESTION_KINDS,
    Query,
    Question,
    Target,
    answered,
    caption,
    question_of,
    questions,
)
from llavacot_mlx.demo.scenes import (
    CALIBRATION,
    COLOURS,
    EXAMPLES,
    KINDS,
    LAYOUTS,
    SIZES,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Background,
    Layout,
    Scene,
    Shape,
    Split,
    scene,
    scenes,
)

__all__ = [
    "CALIBRATION",
    "COLOURS",
    "EXAMPLES",
    "KINDS",
    "LAYOUTS",
    "QUESTION_KINDS",
    "SIZES",
    "SPLITS",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Background",
    "JudgeQuestion",
    "Layout",
    "Query",
    "Question",
    "Scene",
    "Shape",
    "Split",
    "Target",
    "answered",
    "caption",
    "draw",
    "judge_question",
    "question_of",
    "questions",
    "scene",
    "scenes",
    "slips",
]
