"""Measures the quality and the cost of a search: `python -m benchmarks.search_quality`.

Held-out questions of the demo world are answered by every method with every judge, at the
published sampling (temperature 0.6, top-p 0.9). A judge of this benchmark, `oracle`,
knows the truth: it is the upper bound for any judge. Outcomes are appended to `rows.jsonl` in
the folder `--rows` as soon as a question is done, and a run that was stopped resumes after them.
At the end the table is printed and written to `benchmarks/results/search_quality.json`.

A candidate's random numbers depend only on the seed and on its position in the tree. So the first n
of many whole answers are those of best-of-n with n candidates, with any judge. They are decoded
once for all n and all judges; `sample` is the first of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.machine import machine
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import SPLITS, Question, Split, draw, questions, scene
from llavacot_mlx.evaluate.statistics import Difference, difference, wilson
from llavacot_mlx.generate.prefill import PrefilledPrompt, prefill
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.plan.plan import LOGPROB, SELF, Method, Plan, Settings, make_plan
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.search.calibration import Calibration, load_calibration
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.engine import Search, keep_best
from llavacot_mlx.search.judges.base import Judge
from llavacot_mlx.search.judges.logprob import LogprobJudge
from llavacot_mlx.search.judges.majority import MajorityJudge
from llavacot_mlx.search.judges.self_judge import SelfJudge
from llavacot_mlx.search.node import Node
from llavacot_mlx.usage import Timings, Usage

RESULT = Path(__file__).parent / "results" / "search_quality.json"
SEED = 0
MOST_TOKENS = 320  # reference answers have at most about 200
CANDIDATES = 4  # numbers of candidates of best-of-n and majority in the table
ORACLE = "oracle"
JUDGES = (SELF, LOGPROB, ORACLE)
_EVERYONE = "everyone"
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


class Oracle:
    """Knows the reference answer: scores 1 for that text or a beginning of it, and 0 otherwise."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [None if node.stage is None else self._score(node) for node in nodes]

    def _score(self, node: Node) -> float:
        assert node.stage is not None
        truth, text = self._question.stage_text(node.stage), node.stage_text.strip()
        ended = any(record.stage is node.stage for record in node.stages)
        return float(text == truth if ended else truth.startswith(text))


class Everyone:
    """Asks several judges about whole answers, and stores their scores in `given`."""

    def __init__(self, judges: Mapping[str, Judge]) -> None:
        self._judges = judges
        self.given: dict[tuple[int, ...], dict[str, float | None]] = {}
        """By an answer's tokens and by judge."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        for name, judge in self._judges.items():
            for node, score in zip(nodes, judge.scores(nodes), strict=True):
                self.given.setdefault(tuple(node.token_ids), {})[name] = score
        return [None for _ in nodes]


@dataclass(frozen=True)
class _Asked:
    """A question, and its prompt read once for every search on it."""

    index: int
    question: Question
    context: PrefilledPrompt
    seconds: float
    """Seconds that reading took, including the picture."""


class Examiner:
    """A model in memory that answers the world's questions in every way."""

    def __init__(self, folder: Path) -> None:
        config = load_config(folder)
        self._tokenizer = Tokenizer.load(folder, config)
        self._image_processor = ImageProcessor.load(folder, config.vision)
        self._model = load_model(folder, "float32")
        self._calibration: Calibration = load_calibration(folder)

    def outcomes(
        self, split: Split, index: int, contenders: Sequence[Contender]
    ) -> Iterator[Outcome]:
        """Runs these contenders on one question; they may share whole answers."""
        seed = split.seed(index)
        world = scene(seed)
        question = questions(world, random.Random(f"rows {seed}"))[0]
        began = time.perf_counter()
        ids = self._tokenizer.prompt([Turn("user", question.text, images=1)])
        prompt = Prompt(tuple(ids), (self._image_processor(draw(world)),))
        context = prefill(self._model, prompt, Usage(), Timings())
        asked = _Asked(index, question, context, time.perf_counter() - began)
        whole = [contender for contender in contenders if contender.method in WHOLE]
        if whole:
            judges = {contender.judge for contender in whole if contender.judge}
            answers = max(contender.candidates for contender in whole)
            yield from self._whole(asked, sorted(judges), answers)
        for contender in contenders:
            if contender not in whole:
                yield self._searched(asked, contender)

    def _whole(self, asked: _Asked, judges: Sequence[str], answers: int) -> Iterator[Outcome]:
        """The first sample, and the choices of judges and majority from the first n answers."""
        usage = Usage()
        everyone = Everyone({name: self._judge(name, asked, usage) for name in judges})
        plan = make_plan(Settings(Method.BEST_OF_N, answers, judge=_EVERYONE))
        search = self._search(asked, plan, everyone, usage)
        for _ in search.run(asked.context.state()):
            pass
        nodes = search.nodes
        # The engine judges equal candidates once.
        a_question = usage.judge_tokens // max(1, len(everyone.given))
        yield _outcome(asked, Contender(Method.SAMPLE), nodes[:1], nodes[0], 0)
        for count in range(2, len(nodes) + 1):
            first = nodes[:count]
            different = {tuple(node.token_ids) for node in first}
            for name in judges:
                given = [everyone.given[tuple(node.token_ids)][name] for node in first]
                spent = a_question * len(different) if name == SELF else 0
                contender = Contender(Method.BEST_OF_N, name, count)
                yield _outcome(asked, contender, first, _best(first, given), spent)
            chosen = _best(first, MajorityJudge().scores(first))
            yield _outcome(asked, Contender(Method.MAJORITY, "", count), first, chosen, 0)

    def _searched(self, asked: _Asked, contender: Contender) -> Outcome:
        usage = Usage()
        began = time.perf_counter()
        plan = self._plan(contender)
        search = self._search(asked, plan, self._judge(contender.judge, asked, usage), usage)
        for _ in search.run(asked.context.state()):
            pass
        answer = _answer(search.nodes, search.best_ids)
        return Outcome(
            question=asked.index,
            contender=contender,
            right=answer == asked.question.answer,
            answer=answer,
            decoded=usage.decoded_tokens,
            judge_tokens=usage.judge_tokens,
            retraces=search.retraces,
            seconds=round(asked.seconds + time.perf_counter() - began, 3),
        )

    def _plan(self, contender: Contender) -> Plan:
        """The method's defaults, and the judge's calibrated threshold."""
        plan = make_plan(Settings(contender.method, judge=contender.judge or None))
        if plan.retrace is None:
            return plan
        if contender.judge == ORACLE:
            threshold = 0.5
        else:
            stats = self._calibration[contender.judge][list(Stage)[plan.retrace.after]]
            threshold = stats.threshold(plan.retrace.deviations)
        return replace(plan, retrace=replace(plan.retrace, threshold=threshold))

    def _search(self, asked: _Asked, plan: Plan, judge: Judge, usage: Usage) -> Search:
        context = self._context(asked, usage)
        return Search(context, plan, {plan.judge: judge}, SEED, MOST_TOKENS)

    def _context(self, asked: _Asked, usage: Usage) -> SearchContext:
        return SearchContext(
            model=self._model,
            image_kv=asked.context.image_kv,
            usage=usage,
            kv_budget=KVBudget(usage),
            tokenizer=self._tokenizer,
            timings=Timings(),
            image=None,  # no judge here reads it
            question=asked.question.text,
        )

    def _judge(self, name: str, asked: _Asked, usage: Usage) -> Judge:
        if name == ORACLE:
            return Oracle(asked.question)
        if name == SELF:
            return SelfJudge(self._context(asked, usage))
        return LogprobJudge()


def _best(nodes: Sequence[Node], scores: Sequence[float | None]) -> Node:
    """The candidates that the engine would keep if a judge gave them these scores."""
    for node, score in zip(nodes, scores, strict=True):
        node.score = score
    return keep_best(nodes, 1)[0]


def _answer(nodes: Sequence[Node], path: Sequence[int]) -> str | None:
    """The conclusion of the candidate at the end of the path of tokens."""
    chosen = next(node for node in nodes if node.path_ids == list(path))
    return _conclusion(chosen)


def _conclusion(node: Node) -> str | None:
    """The text of the last CONCLUSION, as in a trace."""
    conclusions = [
        record.text.strip() for record in node.stages if record.stage is Stage.CONCLUSION
    ]
    return conclusions[-1] if conclusions else None


def _outcome(
    asked: _Asked, contender: Contender, nodes: Sequence[Node], chosen: Node, judge_tokens: int
) -> Outcome:
    answer = _conclusion(chosen)
    decoded = sum(len(node.token_ids) for node in nodes)
    right = answer == asked.question.answer
    return Outcome(asked.index, contender, right, answer, decoded, judge_tokens, 0, None)


# --- Rows on disk, so that a run can be stopped at any time. ---

Outcomes = dict[Contender, dict[int, Outcome]]


def contenders(methods: Sequence[str], judges: Sequence[str], answers: int) -> list[Contender]:
    """All contenders: each method with each judge that it supports.

    Best-of-n and majority take part with every n up to `answers`.
    """
    found, counts = [], range(2, answers + 1)
    for method in methods:
        if method in (Method.GREEDY, Method.SAMPLE):
            found.append(Contender(method))
        elif method == Method.MAJORITY:
            found += [Contender(method, "", count) for count in counts]
        elif method == Method.BEST_OF_N:
            found += [Contender(method, judge, count) for judge in judges for count in counts]
        else:
            steps = make_plan(Settings(method, judge=SELF)).steps
            most = max(step.candidates for step in steps)
            found += [Contender(method, judge, most) for judge in judges]
    return found


def read_rows(file: Path) -> Outcomes:
    """All outcomes so far, by contender and question; a truncated last line is ignored."""
    outcomes: Outcomes = defaultdict(dict)
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                outcome = Outcome(**(row | {"contender": Contender(**row["contender"])}))
                outcomes[outcome.contender][outcome.question] = outcome
    return outcomes


def run(
    file: Path,
    model: Path,
    split: Split,
    numbers: range,
    wanted: Sequence[Contender],
    processes: int,
) -> None:
    """Answers the questions that are missing in the file, and appends their outcomes."""
    outcomes = read_rows(file)
    tasks = []
    for index in numbers:
        missing = [contender for contender in wanted if index not in outcomes[contender]]
        if missing:
            tasks.append((split, index, missing))
    if not tasks:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():  # a truncated line must not join the next one
        text = file.read_text(encoding="utf-8")
        file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(processes, initializer=_load, initargs=(model,)) as pool,
        file.open("a", encoding="utf-8") as rows,
    ):
        for done, found in enumerate(pool.imap_unordered(_examined, tasks), start=1):
            rows.write("".join(json.dumps(asdict(outcome)) + "\n" for outcome in found))
            rows.flush()
            if done % 25 == 0:
                print(f"{done} of {len(tasks)} questions", flush=True)


_examiner: Examiner | None = None  # globals of a worker process


def _load(model: Path) -> None:
    global _examiner
    _examiner = Examiner(model)


def _examined(task: tuple[Split, int, Sequence[Contender]]) -> list[Outcome]:
    assert _examiner is not None
    return list(_examiner.outcomes(*task))


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
    parser.add_argument("--split", choices=[split.name for split in SPLITS], default="test")
    parser.add_argument(
        "--questions", type=int, default=1000, help="how many; 0 prints the table of what is there"
    )
    parser.add_argument("--first", type=int, default=0, help="the first question's number")
    parser.add_argument("--methods", nargs="+", choices=list(Method), default=list(Method))
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=JUDGES)
    parser.add_argument("--answers", type=int, default=10, help="the largest n of best-of-n")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=Path("search_quality"), help="a folder")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    split = next(split for split in SPLITS if split.name == arguments.split)
    file = arguments.rows / "rows.jsonl"
    wanted = contenders(arguments.methods, arguments.judges, arguments.answers)
    numbers = range(arguments.first, arguments.first + arguments.questions)
    run(file, arguments.model, split, numbers, wanted, arguments.processes)
    outcomes = read_rows(file)
    lines = report(outcomes)
    print(table(lines))
    record = {
        "machine": machine(),
        "split": split.name,
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
