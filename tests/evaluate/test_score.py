"""Scores of hand-made answers: the metrics of each set, its tables and intervals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_files import BENCHES, choice_rows, write_set, write_tsv
from written_runs import answer_row, concluded, write_run

from llavacot_mlx.evaluate.answer_file import read_answers, write_answers
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet, Task
from llavacot_mlx.evaluate.open_sets import open_sets
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.evaluate.paper import compare_with_paper, paper_row
from llavacot_mlx.evaluate.profile import PROFILES
from llavacot_mlx.evaluate.question import BenchmarkQuestion
from llavacot_mlx.evaluate.score import SetScore
from llavacot_mlx.evaluate.score_run import score_by_rule
from llavacot_mlx.evaluate.shapes import DrawnPicture
from llavacot_mlx.evaluate.statistics import ClusterSums, paired_interval


def opened(name: str | Path, data: Path | None = None, **options: Any) -> BenchmarkSet:
    (found,) = open_sets(str(name), data, **options)
    return found


def scored(folder: Path, each: BenchmarkSet, say: Any, **more: Any) -> SetScore:
    (found,) = score_by_rule(write_run(folder, [each], say, **more)).sets
    return found


def right(question: BenchmarkQuestion) -> str:
    return concluded(question.answer or "")


def wrong(question: BenchmarkQuestion) -> str:
    other = next(letter for letter in "ABCD" if letter != question.answer)
    return concluded(other)


def test_mmstar_by_category_and_the_reasoning_subset(tmp_path: Path) -> None:
    write_set(tmp_path, "mmstar")
    mmstar = opened("mmstar", tmp_path)

    def say(question: BenchmarkQuestion) -> str:
        return right(question) if question.fields["category"] == "math" else wrong(question)

    found = scored(tmp_path / "run", mmstar, say)
    assert found.score == pytest.approx(100 / 6, abs=1e-3)
    assert found.categories["category"]["math"].score == 100
    assert found.categories["category"]["logical reasoning"].score == 0
    assert found.reasoning == 25
    assert found.clean is not None
    assert found.clean.n == 1500 - BENCHES["AI2D_TEST"] - BENCHES["ScienceQA_TEST"]
    assert found.paper is not None
    assert (found.paper.row, found.paper.score) == ("LLaVA-CoT", 57.6)
    assert not found.paper.within_noise


def test_mmbench_counts_a_question_only_if_all_rotations_are_right(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench")
    mmbench = opened("mmbench", tmp_path)

    def say(question: BenchmarkQuestion) -> str:
        is_wrong = question.group == 5 and question.rotation == 2
        return wrong(question) if is_wrong else right(question)

    found = scored(tmp_path / "run", mmbench, say)
    assert (found.score, found.n) == (97.5, 40)
    assert found.paper is None  # the paper's is of the test split
    assert found.categories["l2-category"]["logic_reasoning"].score == 90


def test_a_rotation_that_nothing_decided_leaves_the_question_open(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench")
    mmbench = opened("mmbench", tmp_path)

    def say(question: BenchmarkQuestion) -> str:
        if question.group in (5, 6) and question.rotation == 2:
            return concluded("I do not know")
        return wrong(question) if (question.group, question.rotation) == (6, 3) else right(question)

    found = scored(tmp_path / "run", mmbench, say)
    assert found.unresolved == 2
    assert found.score == 95
    assert found.band == (95, 97.5)


def test_hallusionbench_is_the_mean_of_rows_figures_and_questions(tmp_path: Path) -> None:
    write_set(tmp_path, "hallusionbench")
    each = opened("hallusionbench", tmp_path)
    keys = {
        part: {(q.fields["l2-category"], q.fields["set"], q.fields[part]) for q in each.questions}
        for part in ("figure", "question")
    }
    lost = each.questions[0]

    def say(question: BenchmarkQuestion) -> str:
        if question is lost:
            return concluded("No" if question.answer == "Yes" else "Yes")
        return right(question)

    found = scored(tmp_path / "run", each, say)
    assert found.parts == {
        "aAcc": pytest.approx(100 * 950 / 951, abs=1e-3),
        "fAcc": pytest.approx(100 * (1 - 1 / len(keys["figure"])), abs=1e-3),
        "qAcc": pytest.approx(100 * (1 - 1 / len(keys["question"])), abs=1e-3),
    }
    assert found.score == pytest.approx(sum(found.parts.values()) / 3, abs=1e-3)


def test_hallusionbench_on_a_hand_made_group(tmp_path: Path) -> None:
    """Two figures with three questions each, of which two answers are wrong: 4/6, 0/2, 1/3."""
    questions = tuple(
        BenchmarkQuestion(
            set="own",
            index=f"VD_chart_1_0_{figure}_{question}",
            question="?",
            prompt="?",
            picture=DrawnPicture(figure),
            answer="Yes",
            fields={
                "l2-category": "VD_chart",
                "set": "0",
                "figure": str(figure),
                "question": str(question),
            },
        )
        for figure in range(2)
        for question in range(3)
    )
    each = BenchmarkSet("own", Task.HALLUSION, questions, {})

    def say(question: BenchmarkQuestion) -> str:
        is_wrong = str(question.index) in ("VD_chart_1_0_0_1", "VD_chart_1_0_1_2")
        return concluded("No" if is_wrong else "Yes")

    found = scored(tmp_path / "run", each, say)
    assert found.parts == {
        "aAcc": pytest.approx(66.6667),
        "fAcc": 0,
        "qAcc": pytest.approx(33.3333),
    }


def test_mathvista_s_lists_by_both_scorers(tmp_path: Path) -> None:
    write_set(tmp_path, "mathvista")
    each = opened("mathvista", tmp_path)
    for scorer, right_lists in ((Scorer.VLMEVAL_2024, 0), (Scorer.MATHVISTA_OFFICIAL, 2)):
        profile = dataclasses.replace(PROFILES["paper"], scorer=scorer)
        run = tmp_path / str(scorer)
        found = scored(run, each, right, profile=profile)
        assert found.score == pytest.approx((998 + right_lists) / 10)
        assert found.categories["skills"]["arithmetic reasoning"].n == 500
        assert found.categories["skills"]["logic"].n == 500


def test_mm_vet_without_a_grader_has_no_score_but_a_band(tmp_path: Path) -> None:
    write_set(tmp_path, "mmvet")
    found = scored(tmp_path / "run", opened("mmvet", tmp_path), right)
    assert (found.score, found.unresolved, found.band) == (None, 218, (0.0, 100.0))


def test_the_test_split_of_mmbench_is_not_scored_here(tmp_path: Path) -> None:
    from benchmark_files import mmbench_rows

    write_set(tmp_path, "mmbench-test", mmbench_rows(answers=False))
    each = opened("mmbench-test", tmp_path)
    found = scored(tmp_path / "run", each, lambda question: concluded("A"))
    assert (found.score, found.band, found.unresolved, found.rule) == (None, None, 0, 160)


def test_what_a_text_lacks_is_counted(tmp_path: Path) -> None:
    each = opened(write_tsv(tmp_path / "own.tsv", choice_rows(4)))
    run = write_run(tmp_path / "run", [each], right)
    texts = ["<CONCLUSION> A", "B", concluded("C"), concluded("D")]
    rows = [answer_row(q, text) for q, text in zip(each.questions, texts, strict=True)]
    rows[3] = dataclasses.replace(rows[3], finish="length", stages=rows[3].stages[1:])
    write_answers(run, rows)
    (found,) = score_by_rule(run).sets
    assert (found.no_conclusion, found.open_conclusion) == (1, 1)
    assert (found.truncated, found.malformed) == (1, 1)
    assert found.score == 100
    assert found.stages["summary"].well_formed == 3
    assert found.stages["summary"].right_otherwise == 100
    assert len(read_answers(run)) == 4


def test_a_part_of_a_set_has_an_interval_of_the_whole(tmp_path: Path) -> None:
    write_set(tmp_path, "mmstar")
    each = opened("mmstar", tmp_path)
    taken = {group[0].index for group in each.take(300)}

    def say(question: BenchmarkQuestion) -> str | None:
        if question.index not in taken:
            return None
        return right(question) if int(question.index) % 3 else wrong(question)

    found = scored(tmp_path / "run", each, say, limit=300)
    assert found.n == 300
    assert found.full_set is not None
    assert found.low is not None
    assert found.score is not None
    factor = (found.score - found.full_set[0]) / (found.score - found.low)
    assert factor == pytest.approx((1 - 300 / 1500) ** 0.5, abs=1e-3)


def test_a_bootstrap_of_clusters_is_wider_than_one_of_questions() -> None:
    rng = np.random.default_rng(1)
    hits = rng.integers(0, 2, 60).astype(float)
    apart = ClusterSums(np.repeat(hits, 4)[:, None], np.ones((240, 1)))
    together = ClusterSums(4 * hits[:, None], np.full((60, 1), 4.0))
    low, high = apart.interval()
    wide_low, wide_high = together.interval()
    assert (wide_high - wide_low) / (high - low) == pytest.approx(2, abs=0.15)
    # A share of independent questions: 1.96 · sqrt(p (1 − p) / n) on each side.
    share = hits.mean()
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 240) ** 0.5, rel=0.08)


def test_an_interval_is_not_empty_where_every_answer_is_right() -> None:
    low, high = ClusterSums(np.ones((20, 1)), np.ones((20, 1))).interval()
    assert (round(low, 2), high) == (0.84, 1.0)


def test_equal_runs_have_no_difference() -> None:
    sums = ClusterSums(np.array([[1.0], [0.0]] * 9), np.ones((18, 1)))
    assert paired_interval(sums, sums) == (0.0, 0.0)


def test_the_noise_of_a_difference_from_the_paper() -> None:
    """MMStar: two draws of 1,500 questions have a half-width of about 3.5 points."""
    found = compare_with_paper("LLaVA-CoT", 57.6, 60.0, 2.5, 1500)
    assert found.noise == pytest.approx(3.5, abs=0.05)
    assert found.within_noise
    assert not compare_with_paper("LLaVA-CoT", 57.6, 61.3, 2.5, 1500).within_noise
    assert paper_row("swires") == "LLaVA-CoT with SWIRES"


def test_shapes_have_wilson_s_interval_by_kind(tmp_path: Path) -> None:
    each = opened("shapes", limit=40)
    found = scored(tmp_path / "run", each, right)
    assert (found.score, found.high) == (100, 100)
    assert found.low == pytest.approx(91.24, abs=0.01)
    assert sum(line.n for line in found.categories["kind"].values()) == 40
