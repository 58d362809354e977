"""The demo model's little world: right answers, repeatable seeds, mistakes that are mistakes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

from llavacot_mlx.demo import example_path, model_path
from llavacot_mlx.demo.judging import misread, slip, wrong_last_step
from llavacot_mlx.demo.world import (
    COLOURS,
    EXAMPLES,
    KINDS,
    LAYOUTS,
    QUESTION_KINDS,
    SIZES,
    SPLITS,
    TEST,
    TRAIN,
    Question,
    Scene,
    Shape,
    caption,
    draw,
    judge_question,
    question_of,
    questions,
    scene,
    slips,
)
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.judges.prompts import SELF_QUESTIONS

MANY = range(400)
RECIPE = Path(__file__).parents[2] / "recipes" / "demo_model"


def asked_of(seed: int) -> tuple[Scene, list[Question]]:
    world = scene(seed)
    return world, questions(world, random.Random(f"test {seed}"))


def plain_answer(question: Question) -> str:
    """The answer in words, whether the question is multiple choice or not."""
    if question.answer in "ABCD" and question.choices:
        return question.choices["ABCD".index(question.answer)]
    return question.answer


# --- The reference answers, worked out a second time from the question's text alone. ---


def named(phrase: str, world: Scene) -> list[Shape]:
    """The shapes that a phrase such as `small red circles` names."""
    words = [word.removesuffix("s") for word in phrase.split()]
    assert words
    return [
        shape
        for shape in world.shapes
        if all(word in (shape.size, shape.colour, shape.kind, "shape", "thing") for word in words)
    ]


WHAT = rf"((?:(?:{'|'.join([*SIZES, *COLOURS, *KINDS])}|shape|thing)s? ?)+)"
RELATION = "(to the left of|to the right of|above|below)"
PLACE = r"((?:top|middle|bottom) (?:left|center|right))"


def second_opinion(text: str, world: Scene) -> str:
    """The answer in words, from the picture's content and the words of the question."""
    text = text.splitlines()[0].lower().rstrip("?.")
    size_asked = text.endswith(" large or small")

    def match(pattern: str) -> re.Match[str] | None:
        return re.search(pattern.replace("WHAT", WHAT).replace("PLACE", PLACE), text)

    def counts(found: re.Match[str]) -> tuple[int, int]:
        return len(named(found[1], world)), len(named(found[2], world))

    if found := match(
        "find the WHAT(to the left of|to the right of|above|below) the WHAT$"
    ) or match("is the WHAT(to the left of|to the right of|above|below) the WHAT$"):
        (one,), (other,) = named(found[1], world), named(found[3], world)
        rows = ("top", "middle", "bottom")
        columns = ("left", "center", "right")
        one_row, one_column = one.place.split()
        other_row, other_column = other.place.split()
        across = columns.index(one_column) - columns.index(other_column)
        down = rows.index(one_row) - rows.index(other_row)
        holds = {
            "to the left of": across < 0,
            "to the right of": across > 0,
            "above": down < 0,
            "below": down > 0,
        }
        return "yes" if holds[found[2]] else "no"
    if found := match("how many more WHATthan WHATare there") or match(
        "how much do the WHAToutnumber the WHAT"
    ):
        one, other = counts(found)
        return str(one - other)
    if found := match("more WHATthan WHAT") or match("of WHATgreater than the number of WHAT"):
        one, other = counts(found)
        return "yes" if one > other else "no"
    if found := match("fewer WHATthan WHAT") or match("of WHATsmaller than the number of WHAT"):
        one, other = counts(found)
        return "yes" if one < other else "no"
    if found := match("as many WHATas WHAT") or match("of WHATequal to the number of WHAT"):
        one, other = counts(found)
        return "yes" if one == other else "no"
    if found := (
        match("if all WHATare taken") or match("remove the WHAT") or match("without the WHAT")
    ):
        return str(len(world.shapes) - len(named(found[1], world)))
    if found := match("PLACE"):
        (shape,) = [shape for shape in world.shapes if shape.place == found[1]]
    elif found := (match("how many WHAT") or match("count the WHAT") or match("number of WHAT")):
        return str(len(named(found[1], world)))
    elif found := match(
        "^(?:is there|can you see|are there|does the picture show) (?:an?|any) WHAT"
    ):
        return "yes" if named(found[1], world) else "no"
    else:
        text = text.removesuffix(" large or small")
        found = match("(?:the|shape is) WHAT")
        assert found, text
        (shape,) = named(found[1], world)
        if "where" in text or "which part" in text:
            return shape.place
    if "color" in text or "colour" in text:
        return shape.colour
    if "how big" in text or size_asked:
        return shape.size
    return shape.kind


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_agree_with_a_second_working_out(kind: str) -> None:
    for seed in MANY:
        world = scene(seed)
        question = question_of(kind, world, random.Random(seed))
        if question is not None:
            assert plain_answer(question) == second_opinion(question.text, world), question.text


def test_caption_tells_every_shape_in_reading_order() -> None:
    for seed in MANY:
        world = scene(seed)
        *listed, total = caption(world).removesuffix(".").split(". ")
        assert listed == [f"{s.place}: {s.size} {s.colour} {s.kind}" for s in world.shapes]
        assert total == f"{len(world.shapes)} shapes in all"
        places = world.layout.places()
        order = [places.index(shape.place) for shape in world.shapes]
        assert order == sorted(set(order))


def test_replies_have_the_four_stages_in_order() -> None:
    for seed in MANY:
        for question in asked_of(seed)[1]:
            reply = question.reply()
            tags = re.findall(r"</?[A-Z]+>", reply)
            assert tags == [tag for stage in Stage for tag in (stage.opening, stage.closing)]
            assert reply.endswith(f"{question.answer} </CONCLUSION>")


def test_every_kind_is_asked_of_nearly_every_scene_and_no_answer_dominates() -> None:
    kinds: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {kind: Counter() for kind in QUESTION_KINDS}
    for seed in MANY:
        for question in asked_of(seed)[1]:
            kinds[question.kind] += 1
            words[question.kind][plain_answer(question)] += 1
    assert min(kinds.values()) > 0.9 * len(MANY)
    for kind, answers in words.items():
        assert answers.most_common(1)[0][1] < 0.62 * kinds[kind], (kind, answers)


def test_a_part_of_the_questions_is_multiple_choice() -> None:
    asked = [question for seed in MANY for question in asked_of(seed)[1]]
    share = sum(bool(question.choices) for question in asked) / len(asked)
    assert 0.25 < share < 0.35
    letters = Counter(question.answer for question in asked if question.choices)
    assert set(letters) == set("ABCD")


# --- Seeds. ---


def test_a_seed_gives_the_same_scene_picture_and_questions() -> None:
    for seed in (0, TEST.seed(7)):
        assert scene(seed) == scene(seed)
        assert draw(scene(seed)).tobytes() == draw(scene(seed)).tobytes()
        assert asked_of(seed) == asked_of(seed)
    assert scene(0) != scene(1)


def test_a_known_seed_stays_what_it_was() -> None:
    """The published figures are of these scenes: a change of the generator is a new world."""
    assert caption(scene(0)) == (
        "top left: small red circle. top center: small red square. "
        "top right: large yellow triangle. 3 shapes in all."
    )


def test_splits_do_not_overlap() -> None:
    ranges = sorted((split.first, split.first + split.count) for split in SPLITS)
    for (_, end), (first, _) in itertools.pairwise(ranges):
        assert end <= first
    with pytest.raises(IndexError, match="test"):
        TEST.seed(TEST.count)


# --- Pictures. ---


def test_every_layout_is_drawn_with_its_size_and_its_shapes_inside() -> None:
    seen = set()
    for seed in range(300):
        world = scene(seed)
        seen.add(world.layout.name)
        image = draw(world)
        assert (image.mode, image.size) == ("RGB", world.picture_size)
        for shape in world.shapes:
            assert shape.diameter / 2 <= shape.x <= world.width - shape.diameter / 2
            assert shape.diameter / 2 <= shape.y <= world.height - shape.diameter / 2
            middle = image.getpixel((int(shape.x * world.scale), int(shape.y * world.scale)))
            assert isinstance(middle, tuple)
            assert all(abs(a - b) <= 2 for a, b in zip(middle, shape.fill, strict=True)), shape
    assert seen == {layout.name for layout in LAYOUTS}


def test_words_for_looks_are_distinct() -> None:
    words = [*COLOURS, *KINDS, *SIZES]
    assert len(set(words)) == len(words)


# --- Judge questions. ---


def test_planted_mistakes_are_mistakes_and_right_ones_are_right() -> None:
    verdicts: Counter[tuple[Stage, str]] = Counter()
    for seed in range(1500):
        world, asked = asked_of(seed)
        judged = judge_question(world, asked[0], random.Random(seed))
        verdicts[judged.stage, judged.answer] += 1
        assert judged.text == SELF_QUESTIONS[judged.stage]
        assert judged.judged in judged.partial
        truth = asked[0].stage_text(judged.stage)
        closed = judged.partial.rstrip().endswith(judged.stage.closing)
        if not closed:
            truth = truth[: len(judged.judged)]
        assert (judged.judged == truth) == (judged.answer == "yes")
        if judged.stage is Stage.CAPTION and closed:
            assert (judged.answer == "yes") == (judged.judged == caption(world))
    for stage in Stage:
        right, wrong = verdicts[stage, "yes"], verdicts[stage, "no"]
        assert 0.35 < wrong / (right + wrong) < 0.65, stage


def test_the_judged_stage_is_the_last_one_and_the_ones_before_are_closed() -> None:
    for seed in MANY:
        world, asked = asked_of(seed)
        judged = judge_question(world, asked[0], random.Random(seed))
        order = list(Stage)
        for stage in order:
            before = order.index(stage) < order.index(judged.stage)
            assert (stage.opening in judged.partial) == (before or stage is judged.stage)
            if before:
                assert stage.closing in judged.partial


def test_a_misread_scene_and_a_slip_always_differ() -> None:
    for seed in MANY:
        world, asked = asked_of(seed)
        rng = random.Random(seed)
        assert caption(misread(world, rng)) != caption(world)
        for stage in (Stage.CAPTION, Stage.REASONING):
            text = asked[0].stage_text(stage)
            assert slip(text, rng) != text


def test_a_wrong_last_step_is_all_that_is_wrong() -> None:
    for seed in MANY:
        for question in asked_of(seed)[1]:
            wrong = wrong_last_step(question, random.Random(seed))
            assert wrong.reasoning != question.reasoning
            assert wrong.answer != question.answer
            assert wrong.caption == question.caption
            walked, meant = wrong.reasoning.split(". "), question.reasoning.split(". ")
            assert walked[:-2] == meant[:-2], "the walk through the caption is right"
            if question.choices:
                assert wrong.answer in "ABCD"[: len(question.choices)]
                assert wrong.reasoning.endswith(f" That is option {wrong.answer}.")


def test_judges_are_asked_about_wrong_letters() -> None:
    """No planted mistake was ever the letter of an option, so a judge did not learn to see it."""
    wrong_letter = nothing_else = 0
    for seed in MANY:
        world, asked = asked_of(seed)
        for question in asked:
            judged = judge_question(world, question, random.Random(seed))
            before, _, letter = judged.judged.rpartition(" That is option ")
            if judged.stage is Stage.REASONING and before and letter != f"{question.answer}.":
                assert judged.answer == "no"
                wrong_letter += 1
                nothing_else += f"{before} That is option {question.answer}." == question.reasoning
    assert wrong_letter > 20
    assert nothing_else > 10


def test_slips_tell_exactly_where_they_are() -> None:
    for seed in MANY:
        text = asked_of(seed)[1][0].reply()
        changed, places = slips(text, 0.3, random.Random(seed))
        assert bool(places) == (changed != text)
        for stage in Stage:
            assert stage.opening in changed
        outside, end = [], 0
        for low, high in places:
            outside.append(changed[end:low])
            end = high
        outside.append(changed[end:])
        pattern = r"\w+".join(re.escape(piece) for piece in outside)
        assert re.fullmatch(pattern, text), "the text differs somewhere else as well"


# --- The recipe's tokenizer. ---


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """recipes/demo_model/tokenizer.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("demo_tokenizer", RECIPE / "tokenizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer(recipe: ModuleType) -> Tokenizer:
    return recipe.train_tokenizer(scenes=300)


@pytest.mark.parametrize(
    "text", ["How many red circles?", "Größe: 3½ m²,\r\n\tnaïve 🙂🙂", "</CAPTION>x", "", "  a  "]
)
def test_any_text_comes_back_from_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_replies_come_back_from_the_tokenizer(tokenizer: Tokenizer) -> None:
    for seed in range(50):
        for question in asked_of(seed)[1]:
            for text in (question.text, question.reply()):
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                assert tokenizer.decode(ids) == text


def test_stage_tags_are_ordinary_text(tokenizer: Tokenizer) -> None:
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for stage in Stage:
        for tag in (stage.opening, stage.closing):
            assert not special & {tag, stage.tag}
            assert len(tokenizer.encode(f" x. {tag}", add_special_tokens=False).ids) > 3


def test_special_tokens_are_laid_out_as_in_llama(recipe: ModuleType, tokenizer: Tokenizer) -> None:
    added = tokenizer.get_added_tokens_decoder()
    assert all(token.special for token in added.values())
    image = tokenizer.token_to_id(recipe.IMAGE)
    assert image == max(added) == tokenizer.get_vocab_size() - 1
    assert image % recipe.ROUND == 0, "the model's vocabulary ends before the image token"
    assert tokenizer.encode("yes").ids == [
        tokenizer.token_to_id(recipe.BOS),
        tokenizer.token_to_id("yes"),
    ]
    assert len(tokenizer.encode("no", add_special_tokens=False).ids) == 1


# --- What ships. ---


def test_where_things_lie() -> None:
    assert model_path().name == "model"
    for name in ("square", "busy", "wide", "tall"):
        assert example_path(name).is_file()
    with pytest.raises(FileNotFoundError, match="no example picture"):
        example_path("nothing of the kind")


def test_the_packaged_model_is_small_and_has_the_world_in_its_tokenizer() -> None:
    files = [path for path in model_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    tokenizer = Tokenizer.from_file(str(model_path() / "tokenizer.json"))
    config = json.loads((model_path() / "config.json").read_text())
    assert tokenizer.token_to_id("<|image|>") == config["text_config"]["vocab_size"]
    for word in (*SIZES, *COLOURS, *KINDS):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1


def test_examples_are_held_out() -> None:
    assert EXAMPLES.first >= TRAIN.first + TRAIN.count
