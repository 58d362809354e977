"""The public names of the little world that the demo model knows.

`scene(seed)` makes a picture's content, `draw(scene)` draws the picture, `questions(scene, rng)`
makes questions with their four-stage answers, and `judge_question(scene, question, rng)` makes
what a judge is asked about an answer. This is pure Python and Pillow, and seeds determine
everything. The splits' seeds do not overlap: the published figures are measured on `TEST`, and
a judge's mean and deviation on `CALIBRATION`.
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
