"""Plans in YAML: every number of a search is read, and errors name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.plan import plan_yaml as plan_file
from llavacot_mlx.plan.plan import Method, Plan, Retrace, Settings, Step, Unit, make_plan
from llavacot_mlx.plan.plan_yaml import plan_from_dict, plan_to_dict, read_plan

MINE = """
method: mine
judge: logprob
temperature: 0.7
steps:
  - write: summary
  - {write: caption, candidates: 6, keep: 2, judge: self, temperature: 0.9, max_tokens: 300}
  - {write: reasoning, candidates: 4, keep: 2, top_p: 0.5}
  - {write: conclusion, candidates: 2}
retrace: {after: reasoning, to: caption, most: 2, rank: 1, threshold: -0.5}
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_stage_is_set_by_itself(tmp_path: Path) -> None:
    assert read_plan(written(tmp_path, MINE)) == Plan(
        "mine",
        (
            Step(Unit.STAGE),
            Step(Unit.STAGE, 6, 2, "self", Sampling(0.9, 0.9), 300),
            Step(Unit.STAGE, 4, 2, None, Sampling(0.7, 0.5)),
            Step(Unit.ANSWER, 2),
        ),
        Sampling(0.7, 0.9),
        "logprob",
        Retrace(after=2, to=1, max_retraces=2, rank=1, threshold=-0.5),
    )


def test_what_is_left_out_is_usual(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, "steps: [{write: sentences, candidates: 3}]"))
    assert plan == Plan("plan", (Step(Unit.SENTENCE, 3),), Sampling(0.6, 0.9), "self")


def test_the_example_in_the_documentation_is_a_plan(tmp_path: Path) -> None:
    assert plan_file.__doc__ is not None
    example = plan_file.__doc__.partition("trace.\n")[2].partition("A step writes")[0]
    plan = read_plan(written(tmp_path, example))
    assert plan.steps[2].max_tokens == 600
    assert plan.retrace == make_plan(Settings("swires")).retrace


@pytest.mark.parametrize("method", list(Method))
def test_every_method_can_be_written_down(method: Method) -> None:
    """A plan can be written and read again, in YAML and JSON; replaying a trace needs this."""
    plan = make_plan(Settings(method))
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


def test_a_plan_of_ones_own_can_be_written_down(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, MINE))
    assert plan_from_dict(plan_to_dict(plan)) == plan


STEPS = "steps: [{write: summary}, {write: caption, candidates: 4, keep: 2}, {write: answer}]"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected an object with keys such as method"),
        ("- a\n- b", "expected an object with keys such as method"),
        ("steps: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("method: swires", "steps: a list"),
        ("steps: []", "steps: a list"),
        ("steps: 4", "steps: expected a list"),
        (f"{STEPS}\njugde: self", "jugde: unknown key; did you mean judge\\?"),
        (f"{STEPS}\ncolour: red", "colour: unknown key; there are method"),
        (
            "steps: [{write: answer, candidats: 4}]",
            "did you mean candidates",
        ),
        ("steps: [answer]", r"steps\[0\]: expected an object"),
        ("steps: [{candidates: 4}]", r"steps\[0\]\.write is missing"),
        ("steps: [{write: caption}]", "write 'caption'; here it is summary or answer"),
        ("steps: [{write: answer}, {write: caption}]", "answer goes to the end"),
        ("steps: [{write: summary}]", "the last one must write"),
        ("steps: [{write: answer, candidates: four}]", "candidates: expected a whole"),
        (
            "steps: [{write: answer, candidates: 2.5}]",
            "expected a whole number, not 2.5",
        ),
        (
            "steps: [{write: answer, candidates: true}]",
            "expected a whole number, not true",
        ),
        ("steps: [{write: answer, candidates: 0}]", r"steps\[0\]: 0 candidates"),
        ("steps: [{write: answer, candidates: 10000}]", "10000 candidates"),
        ("steps: [{write: answer, candidates: 2, keep: 3}]", "keep 3 of 2"),
        (
            "steps: [{write: answer, max_tokens: 0}]",
            "max_tokens: expected a whole",
        ),
        ("steps: [{write: answer, temperature: -1}]", r"steps\[0\]: temperature"),
        ("temperature: hot\nsteps: [{write: answer}]", 'temperature: expected a number, not "hot"'),
        ("top_p: 2\nsteps: [{write: answer}]", "top_p must be"),
        ("judge: [a]\nsteps: [{write: answer}]", "judge: expected a text"),
        (f"{STEPS}\nretrace: {{to: caption}}", "retrace.after is missing"),
        (f"{STEPS}\nretrace: {{after: reasoning, to: caption}}", "after 'reasoning' is not a step"),
        (f"{STEPS}\nretrace: {{after: summary, to: caption}}", "comes no later"),
        (f"{STEPS}\nretrace: {{after: answer, to: caption}}", "after the last step"),
        (f"{STEPS}\nretrace: {{after: caption, to: caption, rank: 5}}", "rank 5"),
        (
            f"{STEPS}\nretrace: {{after: caption, to: caption, most: -1}}",
            "retrace.most: expected a whole",
        ),
        (
            f"{STEPS}\nretrace: {{after: caption, to: caption, threshold: 1, deviations: 1}}",
            "threshold and deviations",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, named: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError, match=named) as raised:
        read_plan(file)
    assert str(raised.value).startswith(f"{file}")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "nix.yaml"):
        with pytest.raises(UserError, match=f"^{file} "):
            read_plan(file)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        read_plan(binary)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"a" * 2_000_000)
    with pytest.raises(UserError, match="too large"):
        read_plan(huge)
