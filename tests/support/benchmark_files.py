"""Files of the paper's six benchmarks as their publishers lay them out, made by hand.

Every set has its published number of rows, with pictures of a few pixels.
"""

from __future__ import annotations

import base64
import csv
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

MMSTAR_CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "math",
    "science & technology",
)
BENCHES = {
    "SEEDBench_IMG": 424,
    "MMBench": 366,
    "MathVista": 345,
    "AI2D_TEST": 196,
    "MMMU": 100,
    "ScienceQA_TEST": 69,
}

Row = dict[str, Any]


@cache
def picture(number: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture of 12 × 10 pixels, another one for each number."""
    rng = random.Random(number)
    image = Image.frombytes("RGB", (12, 10), rng.randbytes(12 * 10 * 3)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def encoded(number: int, kind: str = "PNG", mode: str = "RGB") -> str:
    return base64.b64encode(picture(number, kind, mode)).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> Path:
    """Writes a file as pandas would; a value of None is an empty cell."""
    names = list(columns) or list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def choice_rows(count: int = 8, **more: Any) -> list[Row]:
    """Rows of a multiple-choice file; the answers go round A, B, C, D."""
    return [
        {
            "index": number,
            "question": f"Which one is number {number}?",
            "A": "apple",
            "B": "bread",
            "C": "cheese",
            "D": "dates",
            "answer": "ABCD"[number % 4],
            "category": ("first", "second")[number % 2],
            "image": encoded(number),
            **more,
        }
        for number in range(count)
    ]


def mmstar_rows() -> list[Row]:
    """1,500 rows with the published counts by category, by answer and by source."""
    answers = [*"A" * 429, *"B" * 447, *"C" * 309, *"D" * 315]
    benches = [name for name, count in BENCHES.items() for _ in range(count)]
    random.Random(0).shuffle(answers)
    return [
        {
            "index": number,
            "question": f"What is shown\nin picture {number}?",
            "image": encoded(number % 50),
            "A": "a bus",
            "B": "a car",
            "C": "a dog",
            "D": "a cat",
            "answer": answers[number],
            "category": MMSTAR_CATEGORIES[number % 6],
            "l2_category": f"part {number % 18}",
            "bench": benches[number],
        }
        for number in range(1500)
    ]


def mmbench_rows(questions: int = 40, rotations: int = 4, *, answers: bool = True) -> list[Row]:
    """Questions in all rotations of their options; the rotations name the first one's picture."""
    rows = []
    options = ["a bus", "a car", "a dog", "a cat"]
    for rotation in range(rotations):
        for number in range(questions):
            right = "ABCD"[(number + rotation) % 4]
            turned = options[-rotation:] + options[:-rotation]
            row: Row = {
                "index": number + rotation * 1_000_000,
                "question": f"What is in picture {number}?",
                "hint": f"Look at {number}." if number % 3 == 0 else None,
                **dict(zip("ABCD", turned, strict=True)),
                "answer": right,
                "category": f"ability {number % 20}",
                "image": encoded(number) if rotation == 0 else str(number),
                "l2-category": (
                    "attribute_reasoning",
                    "logic_reasoning",
                    "relation_reasoning",
                    "coarse_perception",
                )[number % 4],
                "split": "dev",
            }
            if not answers:
                del row["answer"]
            rows.append(row)
    return rows


def mmvet_rows() -> list[Row]:
    return [
        {
            "index": number,
            "question": f"What is x in the equation of picture {number}?",
            "answer": "-1<AND>-5" if number % 2 else "-1<OR>-5",
            "category": ("ocr,math", "rec", "rec,spat", "ocr,spat,math")[number % 4],
            "image": encoded(number % 40),
        }
        for number in range(218)
    ]


def mathvista_kinds() -> list[str]:
    return [*["text"] * 540, *["integer"] * 418, *["float"] * 40, *["list"] * 2]


def mathvista_rows() -> list[Row]:
    tasks = [
        *["figure question answering"] * 269,
        *["geometry problem solving"] * 208,
        *["math word problem"] * 186,
        *["visual question answering"] * 179,
        *["textbook question answering"] * 158,
    ]
    rows = []
    for number, kind in enumerate(mathvista_kinds()):
        is_choice = kind == "text"
        rows.append(
            {
                "index": number + 1,
                "question": f"Hint: Please answer.\nQuestion: How much is {number}?",
                "answer": {"text": "145°", "integer": "14", "float": "1.2", "list": "[1, 2]"}[kind],
                "answer_option": "C" if is_choice else None,
                "question_type": "multi_choice" if is_choice else "free_form",
                "answer_type": kind,
                "choices": "['135°', '140°', '145°', '150°']" if is_choice else None,
                "skills": ("['arithmetic reasoning']", "['algebraic reasoning', 'logic']")[
                    number % 2
                ],
                "task": tasks[number],
                "image": encoded(number % 60),
            }
        )
    return rows


def ai2d_rows() -> list[Row]:
    return [
        {
            "index": number // 4 * 100 + number % 4,
            "question": f"What does label {number} show?",
            "A": "stem",
            "B": "leaf",
            "C": "root",
            "D": "seed",
            "answer": "ABCD"[number % 4],
            "category": ("foodChain", "partsOfA")[number % 2],
            "image": encoded(number // 4 % 70),
        }
        for number in range(3088)
    ]


def hallusion_records() -> list[Row]:
    """951 questions about figures of 167 sets, and 178 without one."""
    records = []
    number = 0
    while number < 1129:
        is_seen = number < 951
        category = "VD" if (number < 591 if is_seen else number < 1100) else "VS"
        of_category = number if number < 591 else number - 591
        records.append(
            {
                "category": category,
                "subcategory": ("chart", "ocr")[of_category % 2],
                "visual_input": "1" if is_seen else "0",
                "set_id": str(of_category // 12),
                "figure_id": str(of_category // 6 % 2) if is_seen else "0",
                "question_id": str(number),
                "question": f"Is figure {number} right?",
                "gt_answer": "1" if number < 401 else "0",
                "filename": f"{category}/{number}.png" if is_seen else None,
            }
        )
        number += 1
    return records


def hallusion_rows() -> list[Row]:
    rows = []
    for number, record in enumerate(hallusion_records()[:951]):
        keys = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
        rows.append(
            {
                "index": "_".join(record[key] for key in keys),
                "question": record["question"],
                "answer": "Yes" if record["gt_answer"] == "1" else "No",
                "category": record["category"],
                "l2-category": f"{record['category']}_{record['subcategory']}",
                "image": encoded(number % 30),
            }
        )
    return rows


ROWS = {
    "mmstar": mmstar_rows,
    "mmbench": mmbench_rows,
    "mmvet": mmvet_rows,
    "mathvista": mathvista_rows,
    "ai2d": ai2d_rows,
    "ai2d-no-mask": ai2d_rows,
    "hallusionbench": hallusion_rows,
}
TSV_NAMES = {
    "mmstar": "MMStar",
    "mmbench": "MMBench_DEV_EN_V11",
    "mmbench-test": "MMBench_TEST_EN_V11",
    "mmvet": "MMVet",
    "mathvista": "MathVista_MINI",
    "ai2d": "AI2D_TEST",
    "ai2d-no-mask": "AI2D_TEST_NO_MASK",
    "hallusionbench": "HallusionBench",
}


def write_set(folder: Path, name: str, rows: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Writes the TSV of a set into a folder of data."""
    return write_tsv(folder / f"{TSV_NAMES[name]}.tsv", ROWS[name]() if rows is None else rows)


def write_parquet(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Writes a file as a data set on the hub has it."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=100)
    return path
