"""What is known of the paper's six benchmarks: names, counts, columns, and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.paper import (
    AI2D,
    AI2D_NO_MASK,
    HALLUSIONBENCH,
    MATHVISTA,
    MMBENCH,
    MMSTAR,
    MMVET,
)

MMBENCH_TEST = "mmbench-test"

_URL = "https://opencompass.openxlab.space/utils"


@dataclass(frozen=True)
class KnownSet:
    """A published benchmark."""

    name: str
    task: Task
    tsv: str
    """The name of VLMEvalKit's file, without `.tsv`."""
    md5: tuple[str, ...]
    """Of the published files."""
    rows: int | None
    """None where nobody has published the number."""
    columns: tuple[str, ...]
    """Those that must be there, besides index, question and image."""
    strata: str
    categories: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rows by value of a column."""
    is_papers: bool = True
    hub: tuple[str, ...] = ()
    """Names of data sets on the hub whose layout is read as well."""
    split: str = ""
    """Begins the names of the files of a hub's data set."""

    @property
    def url(self) -> str:
        """Where the file is published."""
        folder = "benchmarks/MMBench" if self.tsv.startswith("MMBench") else "VLMEval"
        return f"{_URL}/{folder}/{self.tsv}.tsv"


_CHOICES = ("A", "B", "C", "D")
_MMSTAR_CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "math",
    "science & technology",
)
_MMBENCH = {
    "task": Task.CHOICE,
    "rows": None,
    "strata": "l2-category",
    "categories": ("l2-category", "category"),
    "is_papers": False,  # the paper's are of the test split, which only a server scores
    "hub": ("MMBench",),
}
_AI2D = {
    "task": Task.CHOICE,
    "rows": 3088,
    "columns": ("A", "B", "answer"),
    "strata": "category",
    "categories": ("category",),
    "split": "test",
}

KNOWN_SETS = (
    KnownSet(
        name=MMSTAR,
        task=Task.CHOICE,
        tsv="MMStar",
        md5=("e1ecd2140806c1b1bbf54b43372efb9e",),
        rows=1500,
        columns=("A", "B", "answer", "category"),
        strata="category",
        categories=("category", "l2_category"),
        counts={
            "category": dict.fromkeys(_MMSTAR_CATEGORIES, 250),
            "answer": {"A": 429, "B": 447, "C": 309, "D": 315},
            "bench": {
                "SEEDBench_IMG": 424,
                "MMBench": 366,
                "MathVista": 345,
                "AI2D_TEST": 196,
                "MMMU": 100,
                "ScienceQA_TEST": 69,
            },
        },
        hub=("MMStar", "MMStar_opencompass"),
        split="",
    ),
    KnownSet(
        name=MMBENCH,
        tsv="MMBench_DEV_EN_V11",
        md5=("30c05be8f2f347a50be25aa067248184",),
        columns=(*_CHOICES, "answer", "category", "l2-category"),
        **_MMBENCH,  # type: ignore[arg-type]
    ),
    KnownSet(
        name=MMBENCH_TEST,
        tsv="MMBench_TEST_EN_V11",
        md5=("26f0f15381a21720255091d3e0316ce6", "8d1a704e791df6f5d9fb3ef782b65365"),
        columns=(*_CHOICES, "category", "l2-category"),
        **_MMBENCH,  # type: ignore[arg-type]
    ),
    KnownSet(
        name=MMVET,
        task=Task.GRADED,
        tsv="MMVet",
        md5=("748aa6d4aa9d4de798306a63718455e3",),
        rows=218,
        columns=("answer", "category"),
        strata="category",
        categories=("category",),
        labels=("category",),
        is_papers=False,  # its scores are those of a grading model that nobody has here
        hub=("mm-vet",),
    ),
    KnownSet(
        name=MATHVISTA,
        task=Task.MATHVISTA,
        tsv="MathVista_MINI",
        md5=("f199b98e178e5a2a20e7048f5dcb0464",),
        rows=1000,
        columns=("answer", "question_type", "answer_type"),
        strata="task",
        categories=("task", "question_type"),
        labels=("skills",),
        counts={
            "question_type": {"multi_choice": 540, "free_form": 460},
            "answer_type": {"text": 540, "integer": 418, "float": 40, "list": 2},
            "task": {
                "figure question answering": 269,
                "geometry problem solving": 208,
                "math word problem": 186,
                "visual question answering": 179,
                "textbook question answering": 158,
            },
        },
        hub=("MathVista",),
        split="testmini",
    ),
    KnownSet(
        name=AI2D,
        tsv="AI2D_TEST",
        md5=("0f593e0d1c7df9a3d69bf1f947e71975",),
        hub=("ai2d",),
        **_AI2D,  # type: ignore[arg-type]
    ),
    KnownSet(
        name=AI2D_NO_MASK,
        tsv="AI2D_TEST_NO_MASK",
        md5=("fd8f463634d4fe9fbd23b876e8eea5be",),
        hub=("ai2d-no-mask",),
        **_AI2D,  # type: ignore[arg-type]
    ),
    KnownSet(
        name=HALLUSIONBENCH,
        task=Task.HALLUSION,
        tsv="HallusionBench",
        md5=("0c23ac0dc9ef46832d7a24504f2a0c7c",),
        rows=951,
        columns=("answer", "category", "l2-category"),
        strata="l2-category",
        categories=("category", "l2-category"),
        counts={"category": {"VD": 591, "VS": 360}, "answer": {"Yes": 401, "No": 550}},
        hub=("HallusionBench",),
        split="image",
    ),
)

BY_NAME = {known.name: known for known in KNOWN_SETS}
BY_TSV = {known.tsv: known for known in KNOWN_SETS}
