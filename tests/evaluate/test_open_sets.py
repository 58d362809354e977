"""The sets in the layouts that people have: counts, prompts, options, answers and refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from benchmark_files import (
    ROWS,
    ai2d_rows,
    choice_rows,
    encoded,
    hallusion_records,
    mathvista_kinds,
    mmbench_rows,
    mmstar_rows,
    picture,
    write_parquet,
    write_set,
    write_tsv,
)

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet, Task
from llavacot_mlx.evaluate.hub_files import split_mmstar_question
from llavacot_mlx.evaluate.open_sets import open_sets


def opened(names: str, data: Path | None = None, **options: Any) -> BenchmarkSet:
    (found,) = open_sets(names, data, **options)
    return found


@pytest.mark.parametrize(
    ("name", "questions", "task"),
    [
        ("mmstar", 1500, Task.CHOICE),
        ("mmbench", 40, Task.CHOICE),
        ("mmvet", 218, Task.GRADED),
        ("mathvista", 1000, Task.MATHVISTA),
        ("ai2d", 3088, Task.CHOICE),
        ("ai2d-no-mask", 3088, Task.CHOICE),
        ("hallusionbench", 951, Task.HALLUSION),
    ],
)
def test_the_six_sets_from_their_tsv(name: str, questions: int, task: Task, tmp_path: Path) -> None:
    write_set(tmp_path, name)
    found = opened(name, tmp_path)
    assert (found.name, found.task, found.size) == (name, task, questions)
    assert len(found.questions) == len(ROWS[name]())
    with_pictures = 3 if "ai2d" not in name else 0  # its first picture has four questions
    assert found.questions[3].picture.read() == picture(with_pictures)
    assert any("MD5" in note for note in found.notes)
    assert not any("counts" in note for note in found.notes)


def test_a_row_reads_as_in_pandas(tmp_path: Path) -> None:
    """Quotes, line breaks, tabs and words for missing values within cells."""
    rows = choice_rows(5)
    rows[0]["question"] = 'He said "look",\nand looked.\r\nTwice.'
    rows[1]["question"] = "one\tcell"
    rows[2] |= {"B": "None", "C": "N/A", "D": "none"}
    rows[3]["question"] = "übel 図 🙂"
    rows[4]["question"] = '"'
    path = write_tsv(tmp_path / "own.tsv", rows)
    table = pandas.read_csv(path, sep="\t")
    for question, (_, row) in zip(opened(str(path)).questions, table.iterrows(), strict=True):
        assert question.index == row["index"]
        assert question.question == row["question"]
        options = {letter: row[letter] for letter in "ABCD" if not pandas.isna(row[letter])}
        assert question.options == options
    assert opened(str(path)).questions[2].options == {"A": "apple", "D": "none"}


def test_prompts_of_multiple_choice(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench")
    with_hint, without = opened("mmbench", tmp_path).questions[:2]
    options = "A. a bus\nB. a car\nC. a dog\nD. a cat\n"
    end = "Please select the correct answer from the options above. \n"
    assert with_hint.prompt == (
        f"Hint: Look at 0.\nQuestion: What is in picture 0?\nOptions:\n{options}{end}"
    )
    assert without.prompt == f"Question: What is in picture 1?\nOptions:\n{options}{end}"


def test_prompts_of_the_other_sets(tmp_path: Path) -> None:
    for name in ("ai2d", "mathvista", "mmvet", "hallusionbench"):
        write_set(tmp_path, name)
    sets = {each.name: each.questions[0] for each in open_sets("ai2d,mmvet", tmp_path)}
    sets |= {each.name: each.questions[0] for each in open_sets("mathvista", tmp_path)}
    sets |= {each.name: each.questions[0] for each in open_sets("hallusionbench", tmp_path)}
    assert sets["ai2d"].prompt == (
        "Look at the scientific diagram carefully and answer the following question: What does "
        "label 0 show?\nA. stem\nB. leaf\nC. root\nD. seed\nRespond only with the correct option "
        "digit."
    )
    for name in ("mathvista", "mmvet", "hallusionbench"):
        assert sets[name].prompt == sets[name].question


def test_rotations_belong_to_their_question(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench")
    found = opened("mmbench", tmp_path)
    groups = found.groups()
    assert len(groups) == 40
    assert all([each.rotation for each in group] == [0, 1, 2, 3] for group in groups)
    first = next(group for group in groups if group[0].index == 7)
    assert [each.index for each in first] == [7, 1_000_007, 2_000_007, 3_000_007]
    assert {each.picture.read() for each in first} == {picture(7)}


def test_a_group_s_own_index_is_honoured(tmp_path: Path) -> None:
    rows = [row | {"g_index": row["index"] // 2} for row in choice_rows(6)]
    path = write_tsv(tmp_path / "own.tsv", rows)
    groups = sorted(
        [(each.index, each.rotation) for each in group] for group in opened(str(path)).groups()
    )
    assert groups == [[(0, 0), (1, 1)], [(2, 0), (3, 1)], [(4, 0), (5, 1)]]


def test_a_beginning_of_a_set_is_a_sample_of_every_category(tmp_path: Path) -> None:
    write_set(tmp_path, "mmstar")
    found = opened("mmstar", tmp_path)
    short, long = found.take(60), found.take(120)
    assert long[:60] == short
    for groups, each in ((short, 10), (long, 20)):
        counts: dict[str, int] = {}
        for (question,) in groups:
            category = question.fields["category"]
            counts[category] = counts.get(category, 0) + 1
        assert set(counts.values()) == {each}


def test_the_test_split_of_mmbench_has_no_answers(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench-test", mmbench_rows(answers=False))
    found = opened("mmbench-test", tmp_path)
    assert all(question.answer is None for question in found.questions)


def test_questions_of_yes_and_no_from_any_file(tmp_path: Path) -> None:
    rows = [
        {
            "index": n,
            "question": f"Is {n} even?",
            "answer": ("yes", "No")[n % 2],
            "image": encoded(n),
        }
        for n in range(4)
    ]
    found = opened(str(write_tsv(tmp_path / "even.tsv", rows)))
    assert (found.name, found.task) == ("even", Task.YES_NO)
    assert [question.answer for question in found.questions] == ["Yes", "No", "Yes", "No"]


def test_rows_without_a_picture_are_left_out(tmp_path: Path) -> None:
    rows = choice_rows(4)
    rows[1]["image"] = ""
    rows[2]["image"] = f"['{encoded(2)}']"
    found = opened(str(write_tsv(tmp_path / "own.tsv", rows)))
    assert [question.index for question in found.questions] == [0, 2, 3]
    assert found.questions[1].picture.read() == picture(2)


def test_pictures_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = choice_rows(2)
    for row in rows:
        del row["image"]
        row["image_path"] = f"{row['index']}.png"
    (tmp_path / "images" / "0.png").write_bytes(picture(0))
    found = opened(str(write_tsv(tmp_path / "own.tsv", rows)))
    assert found.questions[0].picture.read() == picture(0)
    with pytest.raises(UserError, match=r"1\.png: there is no such picture"):
        found.questions[1].picture.read()


# --- The layouts of the hub ---


def test_mmstar_s_layout_on_the_hub_gives_the_tsv_s_questions(tmp_path: Path) -> None:
    records = []
    for row in mmstar_rows():
        listed = ", ".join(f"{letter}: {row[letter]}" for letter in "ABCD")
        records.append(
            {
                "index": row["index"],
                "question": f"{row['question']}\nOptions: {listed}",
                "image": picture(row["index"] % 50),
                "answer": row["answer"],
                "category": row["category"],
                "l2_category": row["l2_category"],
                "meta_info": {"source": row["bench"], "split": "val", "image_path": "x.jpg"},
            }
        )
    write_parquet(tmp_path / "hub" / "MMStar" / "mmstar.parquet", records)
    (tmp_path / "tsv").mkdir()
    write_set(tmp_path / "tsv", "mmstar")
    hub, tsv = opened("mmstar", tmp_path / "hub"), opened("mmstar", tmp_path / "tsv")
    assert [each.prompt for each in hub.questions] == [each.prompt for each in tsv.questions]
    assert [each.answer for each in hub.questions] == [each.answer for each in tsv.questions]
    assert hub.questions[7].fields["bench"] == tsv.questions[7].fields["bench"]
    assert hub.questions[207].picture.read() == picture(7)
    assert any("layout" in note for note in hub.notes)


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Q?\nOptions: A: 1, 2, B: b, C: c: d, D: e", "Q?", ["1, 2", "b", "c: d", "e"]),
        ("Hint: H\nQuestion: Q?\nChoices:\n(A) 1\n(B) 2\n(C) nan", None, ["1", "2", "nan"]),
        ("Q?\n(A)8\n(B)9\n(C)7\n(D)6", None, ["8", "9", "7", "6"]),
    ],
)
def test_options_within_mmstar_s_questions(
    text: str, question: str | None, options: list[str]
) -> None:
    found, listed = split_mmstar_question(text)
    assert found == (text if question is None else question)
    assert listed == dict(zip("ABCD", options, strict=False))


def test_mathvista_s_layout_on_the_hub(tmp_path: Path) -> None:
    records = []
    for number, kind in enumerate(mathvista_kinds()):
        choices = ["135°", "140°", "145°"] if kind == "text" else None
        records.append(
            {
                "pid": str(number + 1),
                "question": f"How much is {number}?",
                "image": f"images/{number}.jpg",
                "decoded_image": {"bytes": picture(number % 60), "path": None},
                "choices": choices,
                "unit": "cm" if number == 545 else None,
                "precision": 1.0 if kind == "float" else None,
                "answer": {"text": "140°", "integer": "14", "float": "1.2", "list": "[1, 2]"}[kind],
                "question_type": "multi_choice" if choices else "free_form",
                "answer_type": kind,
                "metadata": {"task": "math word problem", "skills": ["a", "b"], "source": "AI2D"},
                "query": None,
            }
        )
    folder = tmp_path / "MathVista" / "data"
    write_parquet(folder / "testmini-00000-of-00001.parquet", records)
    write_parquet(folder / "test-00000-of-00001.parquet", records[:10])
    found = opened("mathvista", tmp_path)
    first, number, last = found.questions[0], found.questions[545], found.questions[999]
    assert first.prompt == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
        "at the end.\nQuestion: How much is 0?\nChoices:\n(A) 135°\n(B) 140°\n(C) 145°"
    )
    assert (first.answer, first.fields["skills"]) == ("B", "a,b")
    assert number.prompt == (
        "Hint: Please answer the question requiring an integer answer and provide the final value, "
        "e.g., 1, 2, 3, at the end.\nQuestion: How much is 545? (Unit: cm)"
    )
    assert last.prompt.startswith(
        "Hint: Please answer the question requiring a Python list as an answer and provide the "
        "final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end."
    )
    decimal = found.questions[960].prompt
    assert "a floating-point number with one decimal place and provide" in decimal
    assert "e.g., 1.2, 1.3, 1.4, at the end." in decimal
    assert found.questions[3].picture.read() == picture(3)


@pytest.mark.parametrize("name", ["ai2d", "ai2d-no-mask"])
def test_ai2d_s_layout_on_the_hub(name: str, tmp_path: Path) -> None:
    records = [
        {
            "question": row["question"],
            "options": [row[letter] for letter in "ABCD"],
            "answer": str("ABCD".index(row["answer"])),
            "image": {"bytes": picture(number // 4 % 70), "path": None},
        }
        for number, row in enumerate(ai2d_rows())
    ]
    write_parquet(tmp_path / name / "data" / "test-00000-of-00001.parquet", records)
    (tmp_path / "tsv").mkdir()
    write_set(tmp_path / "tsv", name)
    hub, tsv = opened(name, tmp_path), opened(name, tmp_path / "tsv")
    assert [each.prompt for each in hub.questions] == [each.prompt for each in tsv.questions]
    assert [each.answer for each in hub.questions] == [each.answer for each in tsv.questions]


@pytest.mark.parametrize("layout", ["json", "parquet"])
def test_hallusionbench_s_other_layouts(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "HallusionBench"
    folder.mkdir()
    records = hallusion_records()
    if layout == "json":
        (folder / "HallusionBench.json").write_text(json.dumps(records))
        (folder / "VD").mkdir()
        (folder / "VD" / "0.png").write_bytes(picture(0))
    else:
        seen = [record | {"image": {"bytes": picture(0)}} for record in records[:951]]
        write_parquet(folder / "data" / "image-00000-of-00001.parquet", seen)
        write_parquet(folder / "data" / "non_image-00000-of-00001.parquet", records[951:])
    (tmp_path / "tsv").mkdir()
    write_set(tmp_path / "tsv", "hallusionbench")
    other, tsv = opened("hallusionbench", tmp_path), opened("hallusionbench", tmp_path / "tsv")
    assert len(other.questions) == 951
    for mine, theirs in zip(other.questions, tsv.questions, strict=True):
        assert (mine.index, mine.prompt, mine.answer) == (
            theirs.index,
            theirs.prompt,
            theirs.answer,
        )
        assert mine.fields["l2-category"] == theirs.fields["l2-category"]
    assert other.questions[0].picture.read() == picture(0)


def test_mm_vet_s_own_layout(tmp_path: Path) -> None:
    records = {
        f"v1_{number}": {
            "imagename": f"v1_{number}.png",
            "question": f"What is {number}?",
            "answer": "-1<AND>-5",
            "capability": ["ocr", "math"],
        }
        for number in range(218)
    }
    (tmp_path / "mm-vet" / "images").mkdir(parents=True)
    (tmp_path / "mm-vet" / "mm-vet.json").write_text(json.dumps(records))
    (tmp_path / "mm-vet" / "images" / "v1_2.png").write_bytes(picture(2))
    third = opened("mmvet", tmp_path).questions[2]
    assert (third.index, third.answer, third.fields["category"]) == (2, "-1<AND>-5", "ocr,math")
    assert third.picture.read() == picture(2)


# --- Files that are refused ---


def refused(path: Path | str, data: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_sets(str(path), data)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_columns_are_named(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("B", "answer")} for row in mmstar_rows()[:3]]
    path = write_set(tmp_path, "mmstar", rows)
    assert refused("mmstar", tmp_path).startswith(f"{path}: missing columns B, answer; it has ")
    del rows[0]["question"], rows[1]["question"], rows[2]["question"]
    assert "missing column question" in refused(write_tsv(tmp_path / "own.tsv", rows))


@pytest.mark.parametrize("length", [70, 101])
def test_broken_base64_is_named_by_its_row(length: int, tmp_path: Path) -> None:
    rows = choice_rows(3)
    rows[1]["image"] = rows[1]["image"][:length] + ("" if length % 4 else "*")
    path = write_tsv(tmp_path / "own.tsv", rows)
    assert refused(path).startswith(f"{path}: row 1: its column image is not whole base64")


@pytest.mark.parametrize("answer", ["E", "apple", "a", "AB"])
def test_an_answer_that_is_no_option(answer: str, tmp_path: Path) -> None:
    rows = choice_rows(3)
    rows[2]["answer"] = answer
    path = write_tsv(tmp_path / "own.tsv", rows)
    assert refused(path) == (
        f'{path}: row 2: its answer "{answer}" is none of its options A, B, C, D'
    )


def test_an_answer_whose_option_is_empty(tmp_path: Path) -> None:
    rows = choice_rows(4)
    rows[3]["D"] = ""
    path = write_tsv(tmp_path / "own.tsv", rows)
    assert "row 3: its answer" in refused(path)
    rows[3]["D"] = "None"
    found = opened(str(write_tsv(path, rows)))
    assert found.questions[3].answer == "D"
    assert "pandas reads as missing" in found.notes[0]


def test_a_duplicate_index(tmp_path: Path) -> None:
    rows = choice_rows(3)
    rows[2]["index"] = 1
    assert "row 1 stands twice" in refused(write_tsv(tmp_path / "own.tsv", rows))


def test_the_wrong_number_of_rows_for_a_known_set(tmp_path: Path) -> None:
    path = write_set(tmp_path, "mmstar", mmstar_rows()[:1499])
    assert refused("mmstar", tmp_path).startswith(
        f"{path}: has 1499 rows with a picture, and mmstar has 1500"
    )


def test_other_counts_than_the_published_are_told(tmp_path: Path) -> None:
    rows = mmstar_rows()
    rows[0]["category"] = "math"
    write_set(tmp_path, "mmstar", rows)
    notes = opened("mmstar", tmp_path).notes
    assert any("coarse perception 249 instead of 250" in note for note in notes)


def test_a_byte_order_mark_is_skipped_and_utf_16_is_named(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "own.tsv", choice_rows(3))
    plain = opened(str(path))
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    marked = opened(str(path))
    assert [q.prompt for q in marked.questions] == [q.prompt for q in plain.questions]
    assert [q.picture.read() for q in marked.questions] == [picture(n) for n in range(3)]
    path.write_text(text, encoding="utf-16")
    assert "iconv -f UTF-16" in refused(path)


@pytest.mark.parametrize("mark", [",", ";"])
def test_another_delimiter(mark: str, tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "own.tsv", choice_rows(3))
    path.write_text(path.read_text().replace("\t", mark))
    assert refused(path) == (
        f"{path}: its columns are separated by {mark!r}; save it with tabs between them"
    )


def test_files_without_rows(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "own.tsv", choice_rows(1))
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert refused(path) == f"{path}: it has no rows"
    path.write_text("")
    assert refused(path) == f"{path}: is empty"


def test_files_that_are_cut_off_or_no_text(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "own.tsv", choice_rows(2))
    text = path.read_text()
    path.write_text(f'{text}2\t"What')
    assert "a quote is never closed" in refused(path)
    path.write_bytes(text.encode() + b"2\t\xff\n")
    assert "line 4 is not UTF-8 text" in refused(path)
    path.write_text(f"{text}{chr(9).join('x' * 12)}\n")
    assert "has 12 cells, and there are 9 columns" in refused(path)
    assert "there is no such file" in refused(tmp_path / "none.tsv")
    assert "is a folder" in refused(f"{tmp_path}/")


@pytest.mark.parametrize("how", ["column", "file", "count", "parquet"])
def test_v1_0_of_mmbench_is_refused(how: str, tmp_path: Path) -> None:
    rows = mmbench_rows(4)
    if how == "column":
        renamed = [{k.replace("l2-c", "L2-c"): v for k, v in row.items()} for row in rows]
        write_set(tmp_path, "mmbench", renamed)
    elif how == "file":
        write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    elif how == "count":
        write_set(tmp_path, "mmbench", mmbench_rows(4329, 1))
    else:
        record = {"question": "?", "L2-category": "x", "image": {"bytes": picture(0)}}
        write_parquet(tmp_path / "MMBench" / "en" / "dev-00000.parquet", [record])
    assert "this is MMBench V1.0, and mmbench is V1.1" in refused("mmbench", tmp_path)


def test_names_that_no_set_has(tmp_path: Path) -> None:
    assert "did you mean mmstar?" in refused("mmstarr")
    assert "there is no such kind of question" in refused("shapes:colour")
    assert "shapes stands twice" in refused("shapes,shapes")
    assert "download https://" in refused("mmstar", tmp_path)
    assert "there is no such folder" in refused("mmstar", tmp_path / "none")


def test_a_limit_beyond_the_set(tmp_path: Path) -> None:
    found = opened(str(write_tsv(tmp_path / "own.tsv", choice_rows(3))))
    with pytest.raises(UserError, match="--limit 4: own has 3 questions"):
        found.take(4)
    with pytest.raises(UserError, match="has 10 questions from number 999990 on"):
        open_sets("shapes", None, first=999_990, limit=11)


def test_a_file_that_changed_during_a_run_is_told(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "own.tsv", choice_rows(3))
    found = opened(str(path))
    assert hashlib.sha256(picture(2)).hexdigest() == found.questions[2].picture.digest
    rows = choice_rows(3)
    rows[2]["image"] = encoded(77)
    write_tsv(path, rows)
    with pytest.raises(UserError, match="the file has changed"):
        found.questions[2].picture.read()
