"""The rows of a file, looked at: each kind of problem, and what is left to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_rows import write_bad_rows
from demo_rows import write_rows

from llavacot_mlx import demo
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.rows.problem import Problem, ProblemKind
from llavacot_mlx.train.data.checks import Checked, CheckedRow, check_rows
from llavacot_mlx.train.data.dataset import Dataset
from llavacot_mlx.train.data.encoding import encode

CONFIG = load_config(demo.model_path())
TOKENIZER = Tokenizer.load(demo.model_path(), CONFIG)
IMAGE_PROCESSOR = ImageProcessor.load(demo.model_path(), CONFIG.vision)


def looked_at(file: Path, max_tokens: int = 1000, threads: int = 2) -> list[CheckedRow]:
    images = file.parent / "images"
    dataset = Dataset.open(file, images if images.is_dir() else None)
    return list(check_rows(dataset, TOKENIZER, IMAGE_PROCESSOR, max_tokens, threads))


def problems_of(tmp_path: Path, *rows: Any) -> list[Problem]:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return list(Checked.of(looked_at(file)).problems)


def test_each_kind_is_found_where_it_is(tmp_path: Path) -> None:
    where = write_bad_rows(tmp_path)
    found = Checked.of(looked_at(tmp_path / "train.jsonl"))
    assert [(problem.kind, problem.row) for problem in found.problems] == list(where.items())
    assert found.rows == (0, len(where) + 1)


@pytest.mark.parametrize("threads", [1, 5])
def test_good_rows_and_what_they_take(tmp_path: Path, threads: int) -> None:
    """lora-train puts rows of a length together without encoding them a second time."""
    file = write_rows(tmp_path, range(8))
    dataset = Dataset.open(file, tmp_path / "images")
    rows = looked_at(file, threads=threads)
    assert [row.index for row in rows] == list(range(8))
    found = Checked.of(rows)
    assert found.problems == ()
    assert found.rows == tuple(range(8))
    for row in rows:
        sample = encode(dataset.conversation(row.index), TOKENIZER, dataset.images)
        assert found.lengths[row.index] == len(sample.ids)
        assert sample.image is not None
        assert row.tiles == len(IMAGE_PROCESSOR(open_image(sample.image)).pixels)


def test_the_most_tokens_are_allowed(tmp_path: Path) -> None:
    file = write_rows(tmp_path, range(1))
    (row,) = looked_at(file)
    assert row.sample is not None
    length = len(row.sample.ids)
    assert looked_at(file, length)[0].problems == ()
    detail = f"{length} tokens, and {length - 1} are the most"
    assert looked_at(file, length - 1)[0].problems == (Problem(1, ProblemKind.TOO_LONG, detail),)


def chat(*answers: str) -> dict[str, Any]:
    messages = []
    for answer in answers:
        messages.append({"role": "user", "content": "?"})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


STAGED = (
    "<SUMMARY>a</SUMMARY><CAPTION>b</CAPTION><REASONING>c</REASONING><CONCLUSION>d</CONCLUSION>"
)


def test_plain_chats_need_no_stages(tmp_path: Path) -> None:
    assert problems_of(tmp_path, chat("Yes."), chat("No.", "Never.")) == []


def test_among_stages_an_answer_without_is_wrong(tmp_path: Path) -> None:
    """A whole row without is one kind of mistake; an answer among others, another."""
    found = problems_of(tmp_path, chat(STAGED, STAGED), chat("Yes."), chat(STAGED, "No."))
    assert found == [
        Problem(2, ProblemKind.NO_STAGES, "has no stage: 'Yes.'"),
        Problem(3, ProblemKind.NOT_REWRITTEN, "answer 2 has no stage: 'No.'"),
    ]


def test_a_row_may_have_several_problems(tmp_path: Path) -> None:
    row = {**chat(STAGED.replace("a", "the given answer").replace("d", " ")), "image": "x" * 300}
    kinds = [problem.kind for problem in problems_of(tmp_path, row)]
    assert kinds == [ProblemKind.PICTURE_MISSING, ProblemKind.STAGE_EMPTY, ProblemKind.LEAK]


def test_problems_by_kind_the_commonest_first(tmp_path: Path) -> None:
    rows = [chat("Yes."), {}, chat("No."), chat(STAGED)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    by_kind = Checked.of(looked_at(file)).by_kind
    assert [(kind, [problem.row for problem in found]) for kind, found in by_kind.items()] == [
        (ProblemKind.NO_STAGES, [1, 3]),
        (ProblemKind.NOT_A_CONVERSATION, [2]),
    ]


def test_a_row_of_more_text_than_can_be_encoded(tmp_path: Path) -> None:
    """It is a problem of the row; the tokenizer's library panicked, or filled the memory."""
    row = {"image": "a.png", "question": "x" + " " * 11_000_000 + "y", "answer": "z"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (checked,) = check_rows(Dataset.open(file, None), TOKENIZER, IMAGE_PROCESSOR, 512)
    (problem,) = checked.problems
    assert problem.kind is ProblemKind.TOO_LONG
    assert "1000000 are the most" in problem.detail
