"""Makes questions about a scene of the little world, each with its answer in four stages.

A `Query` is a question independent of a scene; `answered(query, scene)` computes its answer. The
same query can be answered for another scene, too: so `judging` plants wrong answers that follow
from one misread shape.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llavacot_mlx.demo.scenes import COLOURS, KINDS, SIZES, Scene, Shape
from llavacot_mlx.prompt.stages import Stage

QUESTION_KINDS = ("count", "compare", "subtract", "attribute", "existence", "position")
CHOICE_SHARE = 0.3  # fraction of questions with multiple choice
CASUAL_SHARE = 0.15  # fraction of questions without a capital and a final mark
LETTERS = "ABCD"
NOTHING = "none"  # the answer when what a question asks for is not there


@dataclass(frozen=True)
class Target:
    """A description of shapes: every attribute that is given must match; None matches any."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def matches(self, shape: Shape) -> bool:
        return (
            self.size in (None, shape.size)
            and self.colour in (None, shape.colour)
            and self.kind in (None, shape.kind)
        )

    @property
    def one(self) -> str:
        """`small red shape`."""
        return " ".join(word for word in (self.size, self.colour, self.kind or "shape") if word)

    @property
    def many(self) -> str:
        """`small red shapes`."""
        return self.one + "s"


@dataclass(frozen=True)
class Query:
    """A question, independent of a scene. `wording` selects the text of question and summary.

    `first` is the target; `second` is the other one in a comparison, a difference or a relation.
    `asked` is the attribute asked for (`size`, `colour`, `kind`), or the relation. `place` is set
    if the question names a place instead of a target.
    """

    kind: str
    form: str
    wording: int
    first: Target = Target()
    second: Target = Target()
    asked: str = ""
    place: str = ""
    choices: tuple[str, ...] = ()
    casual: bool = False  # written without a capital at the start and a mark at the end


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the reference text of each of the four stages.

    `answer` is exactly the text of the CONCLUSION: a letter if there are `choices`.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]
    summary: str
    caption: str
    reasoning: str
    query: Query

    def stage_text(self, stage: Stage) -> str:
        """The text between the stage's tags, without the surrounding spaces."""
        return {
            Stage.SUMMARY: self.summary,
            Stage.CAPTION: self.caption,
            Stage.REASONING: self.reasoning,
            Stage.CONCLUSION: self.answer,
        }[stage]

    def reply(self) -> str:
        """The whole reference answer, tags included."""
        return "\n\n".join(tagged(stage, self.stage_text(stage)) for stage in Stage)


def tagged(stage: Stage, text: str) -> str:
    return f"{stage.opening} {text} {stage.closing}"


def caption(scene: Scene) -> str:
    """The reference CAPTION: every shape in reading order, place first, and their number."""
    listed = " ".join(f"{shape.place}: {shape.description}." for shape in scene.shapes)
    return f"{listed} {len(scene.shapes)} shapes in all."


# Pairs of question and summary by the query's form; `Query.wording` selects the pair.
_WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "count": (
        ("How many {many} are there?", "I need to count the {many}."),
        (
            "How many {many} can you see in the picture?",
            "I will look at every shape and count the {many}.",
        ),
        ("Count the {many}.", "The task is to count the {many}, one shape after another."),
        ("What is the number of {many}?", "The question asks for the number of {many}."),
        (
            "Please tell me how many {many} the picture shows.",
            "I am asked how many {many} the picture shows, so I count them.",
        ),
    ),
    "more": (
        (
            "Are there more {many} than {others}?",
            "I need to compare the {many} with the {others}.",
        ),
        (
            "Is the number of {many} greater than the number of {others}?",
            "I will count the {many} and the {others} and compare the two numbers.",
        ),
        (
            "Does the picture show more {many} than {others}?",
            "The question is whether the {many} outnumber the {others}.",
        ),
    ),
    "fewer": (
        (
            "Are there fewer {many} than {others}?",
            "I need to see whether the {many} are fewer than the {others}.",
        ),
        (
            "Is the number of {many} smaller than the number of {others}?",
            "I will count the {many} and the {others} to see which number is smaller.",
        ),
    ),
    "same": (
        (
            "Are there as many {many} as {others}?",
            "I need to see whether there are as many {many} as {others}.",
        ),
        (
            "Is the number of {many} equal to the number of {others}?",
            "I will count the {many} and the {others} and see if the numbers are equal.",
        ),
    ),
    "left over": (
        (
            "If all {many} are taken away, how many shapes are left?",
            "I need to take the {many} away from all shapes.",
        ),
        (
            "Remove the {many}. How many shapes remain?",
            "I will count the {many} and subtract them from the number of all shapes.",
        ),
        (
            "How many shapes are left without the {many}?",
            "The task is to subtract the number of {many} from the number of shapes.",
        ),
    ),
    "difference": (
        (
            "How many more {many} than {others} are there?",
            "I need the difference between the {many} and the {others}.",
        ),
        (
            "By how much do the {many} outnumber the {others}?",
            "I will count the {many} and the {others} and subtract.",
        ),
    ),
    "colour of": (
        ("What color is the {one}?", "I need to find the {one} and name its color."),
        ("Which colour does the {one} have?", "The question asks for the color of the {one}."),
        ("Tell me the color of the {one}.", "I will look for the {one} to see its color."),
    ),
    "kind of": (
        ("What shape is the {one} thing?", "I need to find what is {one} and name its shape."),
        (
            "Which kind of shape is {one}?",
            "The question asks which kind of shape is {one}.",
        ),
    ),
    "size of": (
        ("Is the {one} large or small?", "I need to find the {one} and name its size."),
        ("How big is the {one}?", "The question asks for the size of the {one}."),
    ),
    "colour at": (
        (
            "What color is the shape at the {place}?",
            "I need to look at the {place} and name the color.",
        ),
        (
            "Which colour does the {place} shape have?",
            "The question asks for the color at the {place}.",
        ),
    ),
    "kind at": (
        (
            "What shape is at the {place}?",
            "I need to look at the {place} and name the shape.",
        ),
        (
            "Which kind of shape do you see at the {place}?",
            "The question asks for the kind of shape at the {place}.",
        ),
    ),
    "size at": (
        (
            "Is the shape at the {place} large or small?",
            "I need to look at the {place} and name the size.",
        ),
        (
            "How big is the {place} shape?",
            "The question asks for the size of the shape at the {place}.",
        ),
    ),
    "exists": (
        ("Is there {a} {one}?", "I need to see whether there is {a} {one}."),
        ("Can you see {a} {one} in the picture?", "I will look for {a} {one}, shape by shape."),
        ("Are there any {many}?", "The question is whether there are any {many}."),
        ("Does the picture show {a} {one}?", "I have to check whether there is {a} {one} in it."),
    ),
    "where": (
        ("Where is the {one}?", "I need to find the {one} and say where it is."),
        (
            "In which part of the picture is the {one}?",
            "The question asks for the place of the {one}.",
        ),
        ("Find the {one}. Where is it?", "I will look for the {one} to tell its place."),
    ),
    "relation": (
        (
            "Is the {one} {relation} the {other}?",
            "I need the places of the {one} and of the {other}.",
        ),
        (
            "Can you find the {one} {relation} the {other}?",
            "I will find the {one} and the {other} and compare their places.",
        ),
    ),
}
_RELATIONS = {
    "to the left of": ("left", "center", "right"),
    "to the right of": ("right", "center", "left"),
    "above": ("top", "middle", "bottom"),
    "below": ("bottom", "middle", "top"),
}
_OPTIONS = {"colour": tuple(COLOURS), "kind": KINDS, "size": SIZES}


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """One question of each kind that the scene allows (nearly always all six), shuffled."""
    asked = [
        question
        for kind in QUESTION_KINDS
        if (question := question_of(kind, scene, rng)) is not None
    ]
    rng.shuffle(asked)
    return asked


def question_of(kind: str, scene: Scene, rng: random.Random) -> Question | None:
    """A question of one kind; None if the scene allows none, such as when no shape is unique."""
    query = {
        "count": _ask_count,
        "compare": _ask_compare,
        "subtract": _ask_subtract,
        "attribute": _ask_attribute,
        "existence": _ask_existence,
        "position": _ask_position,
    }[kind](scene, rng)
    if query is None:
        return None
    if rng.random() < CHOICE_SHARE:
        query = replace(query, choices=_choices(query, scene, rng))
    if rng.random() < CASUAL_SHARE:
        query = replace(query, casual=True)
    return answered(query, scene)


def answered(query: Query, scene: Scene) -> Question:
    """The question in words, with all four stages computed from the scene."""
    question, summary = _WORDINGS[query.form][query.wording]
    one = _named(query)
    words = {
        "a": "an" if one[0] in "aeiou" else "a",
        "one": one,
        "many": query.first.many,
        "other": query.second.one,
        "others": query.second.many,
        "place": query.place,
        "relation": query.asked,
    }
    reasoning, answer = _work_out(query, scene)
    text = question.format(**words)
    if query.casual:
        text = text[0].lower() + text[1:].rstrip("?.")
    if query.choices:
        options = zip(LETTERS, query.choices, strict=False)
        text += "".join(f"\n{letter}. {option}" for letter, option in options)
        if answer in query.choices:
            letter = LETTERS[query.choices.index(answer)]
            reasoning += f" That is option {letter}."
            answer = letter
    return Question(
        kind=query.kind,
        text=text,
        answer=answer,
        choices=query.choices,
        summary=summary.format(**words),
        caption=caption(scene),
        reasoning=reasoning,
        query=query,
    )


def _named(query: Query) -> str:
    """The target in the singular; without its kind, such as `small red`, if the kind is asked."""
    if query.form != "kind of":
        return query.first.one
    return " ".join(word for word in (query.first.size, query.first.colour) if word)


# --- Working out the answer: the reasoning walks the caption shape by shape. ---


def _work_out(query: Query, scene: Scene) -> tuple[str, str]:
    """The reasoning and the answer in plain words."""
    if query.form in ("count", "left over"):
        return _work_out_number(query, scene)
    if query.form in ("more", "fewer", "same", "difference"):
        return _work_out_pair(query, scene)
    if query.form == "relation":
        return _work_out_relation(query, scene)
    return _work_out_search(query, scene)


def _item(shape: Shape, verdict: str) -> str:
    return f"{shape.place}: {shape.description}, {verdict}."


def _work_out_number(query: Query, scene: Scene) -> tuple[str, str]:
    items, count = [], 0
    for shape in scene.shapes:
        if query.first.matches(shape):
            count += 1
            items.append(_item(shape, f"yes ({count})"))
        else:
            items.append(_item(shape, "no"))
    if query.form == "count":
        items.append(f"The count is {count}.")
        return " ".join(items), str(count)
    total = len(scene.shapes)
    items.append(f"{total} - {count} = {total - count}.")
    return " ".join(items), str(total - count)


def _work_out_pair(query: Query, scene: Scene) -> tuple[str, str]:
    """Compares two counts. Every step states both, so that it follows from the last step alone."""
    items, first, second = [], 0, 0
    for shape in scene.shapes:
        if query.first.matches(shape):
            first += 1
            items.append(_item(shape, f"first ({first}, {second})"))
        elif query.second.matches(shape):
            second += 1
            items.append(_item(shape, f"second ({first}, {second})"))
        else:
            items.append(_item(shape, "no"))
    items.append(f"{query.first.many}: {first}, {query.second.many}: {second}.")
    if query.form == "difference":
        items.append(f"{first} - {second} = {first - second}.")
        return " ".join(items), str(first - second)
    sign = ">" if first > second else "<" if first < second else "="
    answer = "yes" if sign == {"more": ">", "fewer": "<", "same": "="}[query.form] else "no"
    items.append(f"{first} {sign} {second}, so {answer}.")
    return " ".join(items), answer


def _work_out_relation(query: Query, scene: Scene) -> tuple[str, str]:
    items, first, second = [], NOTHING, NOTHING
    for shape in scene.shapes:
        if first == NOTHING and query.first.matches(shape):
            first = shape.place
            items.append(_item(shape, "first"))
        elif second == NOTHING and query.second.matches(shape):
            second = shape.place
            items.append(_item(shape, "second"))
        else:
            items.append(_item(shape, "no"))
    answer = "no"
    if NOTHING not in (first, second):
        order = _RELATIONS[query.asked]
        axis = 1 if "center" in order else 0
        holds = order.index(first.split()[axis]) < order.index(second.split()[axis])
        answer = "yes" if holds else "no"
    items.append(f"first: {first}, second: {second}, so {answer}.")
    return " ".join(items), answer


def _work_out_search(query: Query, scene: Scene) -> tuple[str, str]:
    """Answers for attribute, existence and place: it walks the shapes until one is found."""
    items, found = [], None
    for shape in scene.shapes:
        if shape.place == query.place or (not query.place and query.first.matches(shape)):
            items.append(_item(shape, "yes"))
            found = shape
            break
        items.append(_item(shape, "no"))
    if query.form == "exists":
        items.append("One is found." if found else "None is found.")
        return " ".join(items), "yes" if found else "no"
    if found is None:
        answer = NOTHING
    elif query.form == "where":
        answer = found.place
    else:
        answer = {"size": found.size, "colour": found.colour, "kind": found.kind}[query.asked]
    items.append(f"It is {answer}." if query.form != "where" else f"It is at the {answer}.")
    return " ".join(items), answer


# --- Choosing what to ask, so that no answer is much more frequent than the others. ---


def _query(
    rng: random.Random,
    kind: str,
    form: str,
    first: Target = Target(),
    second: Target = Target(),
    asked: str = "",
    place: str = "",
) -> Query:
    wording = rng.randrange(len(_WORDINGS[form]))
    return Query(kind, form, wording, first, second, asked, place)


def _target_near(shape: Shape, attributes: Sequence[str]) -> Target:
    """The target that names these attributes of the shape."""
    return Target(
        size=shape.size if "size" in attributes else None,
        colour=shape.colour if "colour" in attributes else None,
        kind=shape.kind if "kind" in attributes else None,
    )


_MIXES = (
    ("kind",),
    ("colour",),
    ("size",),
    ("colour", "kind"),
    ("size", "kind"),
    ("size", "colour"),
    ("size", "colour", "kind"),
)


def _any_target(rng: random.Random) -> Target:
    mix = rng.choice(_MIXES)
    return Target(
        size=rng.choice(SIZES) if "size" in mix else None,
        colour=rng.choice(tuple(COLOURS)) if "colour" in mix else None,
        kind=rng.choice(KINDS) if "kind" in mix else None,
    )


def _count(target: Target, scene: Scene) -> int:
    return sum(target.matches(shape) for shape in scene.shapes)


def _target_of_spread_count(scene: Scene, rng: random.Random) -> Target:
    """A random target; its counts are about evenly distributed over those that the scene has."""
    candidates = [_any_target(rng) for _ in range(4)]
    candidates += [_target_near(rng.choice(scene.shapes), rng.choice(_MIXES)) for _ in "1234"]
    counts = sorted({_count(target, scene) for target in candidates})
    wanted = rng.choice(counts)
    return rng.choice([target for target in candidates if _count(target, scene) == wanted])


def _ask_count(scene: Scene, rng: random.Random) -> Query:
    target = Target() if rng.random() < 0.12 else _target_of_spread_count(scene, rng)
    return _query(rng, "count", "count", target)


def _pair(scene: Scene, rng: random.Random) -> tuple[Target, Target]:
    """Two disjoint targets, at least one of them in the picture."""
    attribute = rng.choice(("kind", "kind", "colour", "colour", "size"))
    near = _target_near(rng.choice(scene.shapes), (attribute,))
    far = near
    while far == near:
        if rng.random() < 0.7:
            far = _target_near(rng.choice(scene.shapes), (attribute,))
        if far == near:
            far = {
                "kind": Target(kind=rng.choice(KINDS)),
                "colour": Target(colour=rng.choice(tuple(COLOURS))),
                "size": Target(size=rng.choice(SIZES)),
            }[attribute]
    return (near, far) if rng.random() < 0.5 else (far, near)


def _ask_compare(scene: Scene, rng: random.Random) -> Query:
    form = rng.choice(("more", "more", "fewer", "same"))
    wanted = rng.choice(("yes", "no"))
    for _ in range(8):  # a few tries for a balanced answer, then any
        first, second = _pair(scene, rng)
        query = _query(rng, "compare", form, first, second)
        if _work_out_pair(query, scene)[1] == wanted:
            break
    return query


def _ask_subtract(scene: Scene, rng: random.Random) -> Query:
    if rng.random() < 0.5:
        return _query(rng, "subtract", "left over", _target_of_spread_count(scene, rng))
    first, second = _pair(scene, rng)
    if _count(first, scene) < _count(second, scene):
        first, second = second, first
    return _query(rng, "subtract", "difference", first, second)


def _unique_targets(scene: Scene, mixes: Sequence[tuple[str, ...]]) -> list[Target]:
    """The targets over these attributes that exactly one shape matches."""
    targets = {_target_near(shape, mix) for shape in scene.shapes for mix in mixes}
    unique = [target for target in targets if _count(target, scene) == 1]
    return sorted(unique, key=lambda target: target.one)


def _ask_attribute(scene: Scene, rng: random.Random) -> Query:
    asked = rng.choice(("colour", "colour", "kind", "kind", "size"))
    others = [name for name in ("size", "colour", "kind") if name != asked]
    targets = _unique_targets(scene, ((others[0],), (others[1],), (others[0], others[1])))
    if targets and rng.random() < 0.6:
        return _query(rng, "attribute", f"{asked} of", rng.choice(targets), asked=asked)
    place = rng.choice(scene.shapes).place
    return _query(rng, "attribute", f"{asked} at", asked=asked, place=place)


def _ask_existence(scene: Scene, rng: random.Random) -> Query:
    if rng.random() < 0.5:
        target = _target_near(rng.choice(scene.shapes), rng.choice(_MIXES))
    else:
        target = _any_target(rng)
        for _ in range(6):
            if not _count(target, scene):
                break
            target = _any_target(rng)
    return _query(rng, "existence", "exists", target)


def _ask_position(scene: Scene, rng: random.Random) -> Query | None:
    targets = _unique_targets(scene, _MIXES)
    if not targets:
        return None
    first = rng.choice(targets)
    apart = [target for target in targets if not _same_shape(target, first, scene)]
    if apart and rng.random() < 0.5:
        wanted = rng.choice(("yes", "no"))
        for _ in range(6):
            relation = rng.choice(tuple(_RELATIONS))
            query = _query(rng, "position", "relation", first, rng.choice(apart), asked=relation)
            if _work_out_relation(query, scene)[1] == wanted:
                break
        return query
    return _query(rng, "position", "where", first)


def _same_shape(one: Target, other: Target, scene: Scene) -> bool:
    return any(one.matches(shape) and other.matches(shape) for shape in scene.shapes)


def _choices(query: Query, scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Options for the query: the right answer and two or three others."""
    answer = _work_out(query, scene)[1]
    if query.form in ("count", "left over", "difference"):
        pool = [str(number) for number in range(7)]
    elif query.form == "where":
        pool = list(scene.layout.places())
    elif query.asked in _OPTIONS:
        pool = list(_OPTIONS[query.asked])
    else:
        pool = ["yes", "no"]
    wrong = [option for option in pool if option != answer]
    options = [answer, *rng.sample(wrong, min(len(wrong), rng.choice((2, 3))))]
    if query.form in ("count", "left over", "difference"):
        options.sort()
    else:
        rng.shuffle(options)
    return tuple(options)
