"""Measures the quality and the cost of a search: `python -m benchmarks.search_quality`.

Held-out questions of the demo world are answered by every method with every judge, at the
published sampling (temperature 0.6, top-p 0.9). A judge of this benchmark, `oracle`, knows the
truth: it is the upper bound for any judge. Each method and judge is a run of `llavacot eval` in the
folder `--runs`, which a run that was stopped goes on with; `mlx.launch -n 2` shares the questions.
At the end the table is printed and written to `benchmarks/results/search_quality.json`.

A candidate's random numbers depend only on the question's seed and on its position in the tree. So
the first n of many whole answers are those of best-of-n with n candidates. They are decoded once
for all n: the others are read from the traces of the run. `sample` is the first of them, and
`majority` counts them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from benchmarks.machine import machine
from llavacot_mlx.answer import LoadedModel
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, Question, draw, scene
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet
from llavacot_mlx.evaluate.conclusion import prediction
from llavacot_mlx.evaluate.grade import grade_by_rule
from llavacot_mlx.evaluate.model_record import model_record
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.evaluate.profile import Profile
from llavacot_mlx.evaluate.run_folder import RunRecord, SetRecord, begun
from llavacot_mlx.evaluate.runner import TRACES, run_sets
from llavacot_mlx.evaluate.score import GradedAnswer
from llavacot_mlx.evaluate.score_run import score_by_rule
from llavacot_mlx.evaluate.shapes import NAME, open_shapes, world_question
from llavacot_mlx.evaluate.statistics import Difference, difference, wilson
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING
from llavacot_mlx.plan.plan import LOGPROB, SELF, Method, Settings, make_plan
from llavacot_mlx.plan.plan_yaml import plan_to_dict
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.stages import Closed, Stage, StageParser
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.search.calibration import ScoreStats, load_calibration
from llavacot_mlx.search.judges.base import Candidate, ExternalJudge
from llavacot_mlx.search.judges.plugins import ExternalJudges
from llavacot_mlx.trace.file import read_trace
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import NodeRecord
from llavacot_mlx.train.distributed import Workers

RESULT = Path(__file__).parent / "results" / "search_quality.json"
SEED = 0
MOST_TOKENS = 320  # reference answers have at most about 200
CANDIDATES = 4  # numbers of candidates of best-of-n and majority in the table
ORACLE = "oracle"
JUDGES = (SELF, LOGPROB, ORACLE)
WHOLE = (Method.SAMPLE, Method.BEST_OF_N, Method.MAJORITY)  # chosen from the same whole answers


@dataclass(frozen=True)
class Contender:
    """A way to answer a question."""

    method: str
    judge: str = ""
    """Empty for methods without a judge."""
    candidates: int = 1


@dataclass(frozen=True)
class Outcome:
    """The outcome of one question."""

    question: int
    contender: Contender
    right: bool
    answer: str | None
    decoded: int
    judge_tokens: int
    retraces: int
    seconds: float | None
    """Seconds from the picture to the answer; None if the answers were also decoded for others."""


# --- The judge that knows the truth. ---


class Oracle:
    """Knows the reference answer: scores 1 for that text or a beginning of it, and 0 otherwise.

    It recognizes a question by its text and its picture.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._known: dict[tuple[str, str], Question] = {}
        for number in numbers:
            question = world_question(TEST, number)
            assert question is not None
            self._known[_digest(draw(scene(TEST.seed(number)))), question.text] = question

    def scores(
        self, image: Image.Image | None, question: str, candidates: Sequence[Candidate]
    ) -> list[float | None]:
        assert image is not None
        known = self._known[_digest(image), question]
        return [None if each.stage is None else _score(known, each) for each in candidates]


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _score(question: Question, candidate: Candidate) -> float:
    assert candidate.stage is not None
    truth, text = question.stage_text(candidate.stage), candidate.stage_text.strip()
    ended = candidate.answer.rstrip().endswith(candidate.stage.closing)
    return float(text == truth if ended else truth.startswith(text))


class Judges(ExternalJudges):
    """The installed judges, and the oracle."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self._oracle = oracle

    def get(self, name: str) -> ExternalJudge:
        return self._oracle if name == ORACLE else super().get(name)


def load(folder: Path, numbers: Iterable[int]) -> Assistant:
    """The model with the oracle of these questions among its judges."""
    config = load_config(folder)
    half = ScoreStats(count=1, mean=0.5, std=0.0)  # so the oracle's threshold is between 0 and 1
    return Assistant(
        LoadedModel(
            model=load_model(folder, "float32"),
            tokenizer=Tokenizer.load(folder, config),
            image_processor=ImageProcessor.load(folder, config.vision),
            calibration={**load_calibration(folder), ORACLE: dict.fromkeys(Stage, half)},
            name=str(folder),
            adapter=None,
            load_s=0.0,
            external_judges=Judges(Oracle(numbers)),
        )
    )


# --- Runs of `llavacot eval`. ---

Outcomes = dict[Contender, dict[int, Outcome]]


def contenders(methods: Sequence[str], judges: Sequence[str], answers: int) -> list[Contender]:
    """What is run: each method with each judge that it supports, and whole answers once a judge."""
    found = []
    wants_whole = any(method in WHOLE for method in methods)
    for method in methods:
        if method == Method.GREEDY:
            found.append(Contender(method))
        elif method not in WHOLE:
            steps = make_plan(Settings(method, judge=SELF)).steps
            most = max(step.candidates for step in steps)
            found += [Contender(method, judge, most) for judge in judges]
    if wants_whole:
        found += [Contender(Method.BEST_OF_N, judge, answers) for judge in judges]
    return found


def run(contender: Contender, runs: Path, model: Path, questions: BenchmarkSet) -> Path:
    """Asks the questions that are missing in the contender's run, and returns its folder."""
    workers = Workers.all()
    samples = contender.method != Method.GREEDY
    whole = contender.method == Method.BEST_OF_N
    profile = Profile(
        name=contender.method,
        search=contender.method,
        candidates=contender.candidates if whole else None,
        judge=contender.judge or None,
        temperature=PUBLISHED_SAMPLING.temperature if samples else 0.0,
        max_tokens=MOST_TOKENS,
    )
    record = RunRecord(
        sets={questions.name: SetRecord.of(questions)},
        model=model_record(str(model), model, None),
        profile=profile,
        plan=plan_to_dict(profile.plan()),
        seed=SEED,
        limit=len(questions.questions),
    )
    folder = runs / "-".join(filter(None, (contender.method, contender.judge)))
    numbers = [int(question.index) for question in questions.questions]
    loaded = cache(lambda: load(model, numbers))
    with begun(folder, record, workers):
        answers = run_sets(loaded, folder, record, [questions], workers)
        for done, _ in enumerate(answers, start=1):
            if done % 25 == 0:
                print(f"{folder.name}: {done} more questions", flush=True)
    return folder


def outcomes_of(contender: Contender, folder: Path) -> Iterator[Outcome]:
    """What a run says about its contender; of whole answers, also with fewer of them."""
    for graded in score_by_rule(folder).answers:
        if contender.method == Method.BEST_OF_N:
            yield from whole_outcomes(contender.judge, graded, folder)
        else:
            answer = graded.answer
            yield Outcome(
                question=int(answer.index),
                contender=contender,
                right=bool(graded.grade.right),
                answer=graded.grade.value,
                decoded=answer.decoded_tokens,
                judge_tokens=answer.judge_tokens,
                retraces=_retraces(folder, answer.index),
                seconds=answer.seconds,
            )


def _retraces(folder: Path, index: int | str) -> int:
    file = folder / TRACES / NAME / f"{index}.0.0.json"
    return read_trace(file).trace.search.retraces if file.exists() else 0


def whole_outcomes(judge: str, graded: GradedAnswer, folder: Path) -> Iterator[Outcome]:
    """The first sample, and the choices of the judge and of the majority from the first n answers.

    They are read from the trace of one search with the most answers.
    """
    search = read_trace(folder / TRACES / NAME / f"{graded.answer.index}.0.0.json").trace.search
    nodes = search.nodes
    different = len({node.text for node in nodes})
    # The engine judges equal candidates once.
    a_question = graded.answer.judge_tokens // max(1, different)

    def outcome(contender: Contender, count: int, chosen: NodeRecord, spent: int) -> Outcome:
        grade = grade_by_rule(graded.question, prediction(chosen.text), Scorer.VLMEVAL_2024)
        return Outcome(
            question=int(graded.answer.index),
            contender=contender,
            right=bool(grade.right),
            answer=grade.value,
            decoded=sum(node.tokens for node in nodes[:count]),
            judge_tokens=spent,
            retraces=0,
            seconds=None,
        )

    yield outcome(Contender(Method.SAMPLE), 1, nodes[0], 0)
    for count in range(2, len(nodes) + 1):
        first = nodes[:count]
        spent = a_question * len({node.text for node in first})
        best = _best(first, [node.score for node in first])
        yield outcome(Contender(Method.BEST_OF_N, judge, count), count, best, spent)
        majority = _best(first, _votes(first))
        yield outcome(Contender(Method.MAJORITY, "", count), count, majority, 0)


def _best(nodes: Sequence[NodeRecord], scores: Sequence[float | None]) -> NodeRecord:
    """The candidate that the engine keeps if a judge gives these scores; of equals the first."""

    def rank(pair: tuple[NodeRecord, float | None]) -> tuple[bool, bool, float]:
        node, score = pair
        is_whole = node.finish is not Finish.REPETITION
        return is_whole, node.closed, -math.inf if score is None else score

    return max(zip(nodes, scores, strict=True), key=rank)[0]


def _votes(nodes: Sequence[NodeRecord]) -> list[float | None]:
    """The share of candidates with the same conclusion, as the judge `majority` counts them."""
    conclusions = [_conclusion(node.text) for node in nodes]
    votes = Counter(conclusions)
    return [None if each is None else votes[each] / len(nodes) for each in conclusions]


def _conclusion(text: str) -> str | None:
    parser = StageParser()
    events = [*parser.feed(text), *parser.finish()]
    if not any(isinstance(event, Closed) and event.stage is Stage.CONCLUSION for event in events):
        return None
    return " ".join(prediction(text).casefold().split())


def read_outcomes(found: Iterable[tuple[Contender, Path]]) -> Outcomes:
    """All outcomes of these runs, by contender and question."""
    outcomes: Outcomes = defaultdict(dict)
    for contender, folder in found:
        for outcome in outcomes_of(contender, folder):
            outcomes[outcome.contender][outcome.question] = outcome
    return outcomes


# --- The table. ---


@dataclass(frozen=True)
class Line:
    """A contender's figures, and its differences from others on questions that both answered."""

    contender: Contender
    questions: int
    right: int
    interval: tuple[float, float]
    decoded: float
    """Means per question, like the next two fields."""
    judge_tokens: float
    retraces: float
    seconds: float | None
    """The median per question: other programs may have used the machine as well."""
    against: Mapping[str, Difference]


def line(outcomes: Outcomes, contender: Contender, rivals: Mapping[str, Contender]) -> Line:
    """The figures of one contender, and its comparisons with the rivals, by their names."""
    mine = outcomes[contender]
    right = sum(outcome.right for outcome in mine.values())
    seconds = [outcome.seconds for outcome in mine.values() if outcome.seconds is not None]
    against = {}
    for name, rival in rivals.items():
        shared = sorted(mine.keys() & outcomes[rival].keys())
        if rival != contender and shared:
            against[name] = difference(
                [mine[index].right for index in shared],
                [outcomes[rival][index].right for index in shared],
            )
    return Line(
        contender=contender,
        questions=len(mine),
        right=right,
        interval=wilson(right, len(mine)),
        decoded=_mean(outcome.decoded for outcome in mine.values()),
        judge_tokens=_mean(outcome.judge_tokens for outcome in mine.values()),
        retraces=_mean(outcome.retraces for outcome in mine.values()),
        seconds=statistics.median(seconds) if seconds else None,
        against=against,
    )


def as_costly(outcomes: Outcomes, contender: Contender, method: str, judge: str) -> Contender:
    """The cheapest rival of `method` that decodes at least as many tokens as the contender.

    The cheapest has the fewest candidates. Both means are over the questions that both answered.
    If no rival decodes as many, it is the one with the most candidates.
    """
    mine = outcomes[contender]
    rivals = [rival for rival in outcomes if (rival.method, rival.judge) == (method, judge)]
    for rival in sorted(rivals, key=lambda rival: rival.candidates):
        shared = mine.keys() & outcomes[rival].keys()
        if sum(outcomes[rival][i].decoded for i in shared) >= sum(mine[i].decoded for i in shared):
            break
    return rival


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def table(lines: Sequence[Line]) -> str:
    """The table in Markdown: percentages, tokens and seconds per question, and differences."""
    rivals = sorted({name for one in lines for name in one.against}, reverse=True)
    rows = [
        "| method | judge | n | right | 95% | decoded | judged | s | of |"
        + "".join(f" − {name} | p |" for name in rivals),
        "|---|---|" + "---:|" * (7 + 2 * len(rivals)),
    ]
    for one in lines:
        low, high = one.interval
        seconds = "" if one.seconds is None else f"{one.seconds:.2f}"
        row = (
            f"| {one.contender.method} | {one.contender.judge} | {one.contender.candidates} "
            f"| {100 * one.right / one.questions:.1f}% | {100 * low:.1f}–{100 * high:.1f}% "
            f"| {one.decoded:.0f} | {one.judge_tokens:.0f} | {seconds} | {one.questions} |"
        )
        for name in rivals:
            row += _against(one.against.get(name))
        rows.append(row)
    return "\n".join(rows)


def _against(found: Difference | None) -> str:
    """Two cells: percentage points with their interval, and p."""
    if found is None:
        return " | |"
    value, low, high = (f"{100 * share:+.1f}" for share in (found.value, found.low, found.high))
    return f" {value} ({low} to {high}) | {_p(found.p)} |"


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first question's number")
    parser.add_argument("--methods", nargs="+", choices=list(Method), default=list(Method))
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=JUDGES)
    parser.add_argument("--answers", type=int, default=10, help="the largest n of best-of-n")
    parser.add_argument("--runs", type=Path, default=Path("search_quality"), help="a folder")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    questions = open_shapes(NAME, first=arguments.first, count=arguments.questions)
    found = [
        (contender, run(contender, arguments.runs, arguments.model, questions))
        for contender in contenders(arguments.methods, arguments.judges, arguments.answers)
    ]
    if not Workers.all().is_main:
        return
    lines = report(read_outcomes(found))
    print(table(lines))
    record = {
        "machine": machine(),
        "split": TEST.name,
        "seed": SEED,
        "sampling": asdict(PUBLISHED_SAMPLING),
        "lines": [asdict(one) for one in lines],
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def report(outcomes: Outcomes) -> list[Line]:
    """The rows of the table, for everything that has outcomes.

    Best-of-n and majority are shown with the default number of candidates, and with the number that
    decodes as many tokens as `swires` with the model as its own judge.
    """
    rivals = {"greedy": Contender(Method.GREEDY), "sample": Contender(Method.SAMPLE)}
    rivals = {name: rival for name, rival in rivals.items() if outcomes[rival]}
    shown = {CANDIDATES}
    leader = Contender(Method.SWIRES, SELF, CANDIDATES)
    if outcomes[leader] and outcomes[Contender(Method.BEST_OF_N, SELF, CANDIDATES)]:
        equal = as_costly(outcomes, leader, Method.BEST_OF_N, SELF)
        rivals[f"best-of-{equal.candidates}"] = equal
        shown.add(equal.candidates)
    order = sorted(
        (contender for contender, found in outcomes.items() if found),
        key=lambda one: (list(Method).index(Method(one.method)), (*JUDGES, "").index(one.judge)),
    )
    return [
        line(outcomes, contender, rivals)
        for contender in order
        if contender.method not in WHOLE[1:] or contender.candidates in shown
    ]


if __name__ == "__main__":
    main()
