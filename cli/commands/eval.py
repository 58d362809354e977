"""`llavacot eval`: measures a model on benchmarks."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavacot_mlx.atomic import check_can_write, write_file
from llavacot_mlx.checked import named
from llavacot_mlx.cli.command import TYPER_SETTINGS, Group, introduced_by
from llavacot_mlx.cli.exit_codes import UsageError, check_usage, handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.grading_model import RULES, is_url, open_grading_model
from llavacot_mlx.cli.load_assistant import load_assistant
from llavacot_mlx.cli.openblas import load_fast_blas
from llavacot_mlx.cli.options import (
    SEARCH_HELP,
    AdapterOption,
    CandidatesOption,
    DebugOption,
    JsonOption,
    JudgeOption,
    KVBitsOption,
    ModelOption,
    RevisionOption,
    SeedOption,
    check_judge,
    check_positive,
)
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.resolve_model import ResolvedModel, ensure_downloaded, resolve_adapted_model
from llavacot_mlx.cli.units import parse_bytes
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.conclusion import AnswerFrom
from llavacot_mlx.evaluate.export import ExportFormat
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.model.kv_budget import BITS, KVLimits
from llavacot_mlx.plan.plan import Method
from llavacot_mlx.search.judges.plugins import check_judge_name, is_model

if TYPE_CHECKING:
    from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet
    from llavacot_mlx.evaluate.grade_file import GradeRow
    from llavacot_mlx.evaluate.llm_grader import GradingModel, LLMGrader
    from llavacot_mlx.evaluate.profile import Profile
    from llavacot_mlx.evaluate.run_folder import RunRecord
    from llavacot_mlx.evaluate.runner import Limits
    from llavacot_mlx.evaluate.score_run import Grading, RunScore
    from llavacot_mlx.evaluate.suite import SuiteRun
    from llavacot_mlx.train.distributed import Workers

RUN_HELP = """\
Ask a model the questions of benchmarks, and score its answers. Give the same command again to go \
on with a run that was stopped.

\b
Examples:
  llavacot eval run --set shapes --limit 200 --out run
  llavacot eval run --set mmstar,ai2d --data ~/LMUData --model ./llava-cot-4bit --out run
"""

SCORE_HELP = """\
Grade and score a run again, without its model. It writes grades.jsonl and score.json in the \
run's folder.

\b
Examples:
  llavacot eval score run
  llavacot eval score run --answer-from whole
  llavacot eval score run --extractor http://localhost:8000/v1 --extractor-model gemma
"""

REPORT_HELP = """\
Show the scores of runs in detail. They are shown by category and by stage of the answers; --html \
writes them as one page, with the answers that are not right, their pictures and their stages.

\b
Examples:
  llavacot eval report run
  llavacot eval report greedy swires --html report.html
"""

EXPORT_HELP = """\
Write the predictions of a run for another scorer. It is VLMEvalKit, or the server of MMBench, \
which alone has the answers of its test split.

\b
Examples:
  llavacot eval export run --for vlmevalkit
  llavacot eval export run --for mmbench-server --out submission
"""

CURVE_HELP = """\
Draw the accuracy of runs against their cost. The cost is tokens and seconds for a question.

\b
Examples:
  llavacot eval curve greedy best-of-4 swires --png curve.png
"""

SUITE_HELP = """\
Make the runs that a YAML file lists. They are on the same questions, and each is compared with \
the first; docs/evaluation.md shows such a file.

\b
Examples:
  llavacot eval suite suite.yaml
"""

COMPARE_HELP = """\
Compare two runs question by question. It shows B minus A on the questions that both answered, \
with a 95% interval and McNemar's exact test.

\b
Examples:
  llavacot eval compare greedy swires
  llavacot eval compare bfloat16 4bit --json
"""

RUN_INTRODUCTION = """\
llavacot eval run asks a model the questions of a benchmark, and scores its answers.

The demo model's world of colored shapes needs no data:

  llavacot eval run --set shapes --limit 200 --out run
"""

SCORE_INTRODUCTION = """\
llavacot eval score grades and scores the answers of a run.

For example:

  llavacot eval score run
"""

COMPARE_INTRODUCTION = """\
llavacot eval compare compares two runs question by question.

For example:

  llavacot eval compare run-a run-b
"""

REPORT_INTRODUCTION = """\
llavacot eval report shows the scores of runs in detail.

For example:

  llavacot eval report run --html report.html
"""

EXPORT_INTRODUCTION = """\
llavacot eval export writes the predictions of a run for another scorer.

For example:

  llavacot eval export run --for vlmevalkit
"""

CURVE_INTRODUCTION = """\
llavacot eval curve draws the accuracy of runs against what they cost.

For example:

  llavacot eval curve run-a run-b --png curve.png
"""

SUITE_INTRODUCTION = """\
llavacot eval suite makes the runs that a YAML file lists.

For example:

  llavacot eval suite suite.yaml
"""

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run of llavacot eval run.")
]

RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Folders of runs of llavacot eval run.")
]

app = typer.Typer(cls=Group, help="Measure a model on benchmarks.", **TYPER_SETTINGS)


@app.callback(invoke_without_command=True)
def evaluate(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=introduced_by(RUN_INTRODUCTION), help=RUN_HELP)
def run(
    sets: Annotated[
        str,
        typer.Option(
            "--set",
            metavar="NAMES",
            help="Sets, with commas between: shapes, shapes:KIND, mmstar, mmbench, mmvet, "
            "mathvista, ai2d, ai2d-no-mask, hallusionbench, or the path of a TSV file.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="The folder of the run, made if needed.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="The folder of the data files. [default: LMUData, as for VLMEvalKit, or "
            "~/LMUData]",
        ),
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    adapter_path: AdapterOption = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME|FILE",
            help="paper: as the paper's scores, sampled at temperature 0.6. paper-greedy: the same "
            "at temperature 0. Or a YAML file. [default: paper; shapes alone: paper-greedy]",
        ),
    ] = None,
    search: Annotated[
        Method | None,
        typer.Option(
            metavar="METHOD",
            help=f"{SEARCH_HELP} [default: the profile's]",
            rich_help_panel="Search",
        ),
    ] = None,
    candidates: CandidatesOption = None,
    judge: JudgeOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Ask only N questions of each set; a larger N later adds to them."
        ),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Stop when the score is certain to this many points on each side (95%).",
        ),
    ] = None,
    first: Annotated[
        int, typer.Option(metavar="N", help="Number of the first question of shapes.")
    ] = 0,
    all_rotations: Annotated[
        bool,
        typer.Option(
            "--all-rotations",
            help="Ask every rotation of a question, also after a wrong answer to one.",
        ),
    ] = False,
    seed: SeedOption = 0,
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Answers to each question, each with its own seed.")
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Answers that are decoded at once. [default: what memory holds]",
            rich_help_panel="Memory",
        ),
    ] = None,
    kv_bits: KVBitsOption = None,
    kv_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for the KV caches of all answers together, such as 2GB.",
            rich_help_panel="Memory",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.EVAL):
        _check_numbers(limit, until, first, repeats, batch_size)
        with check_usage():
            budget = _kv_budget(kv_bits, kv_budget)
        if judge is not None:
            check_judge(judge)
        alone = _is_shapes_alone(sets)
        chosen = _profile(profile, search, candidates, judge, is_shapes=alone)
        load_fast_blas()  # before the first of the following imports MLX

        from llavacot_mlx.evaluate.open_sets import open_sets
        from llavacot_mlx.evaluate.runner import Limits

        opened = open_sets(sets, data, first=first, limit=limit, until=until is not None)
        for each in opened:
            each.take(limit)  # which refuses a limit beyond the set, before a model is loaded
        resolved = resolve_adapted_model(model, adapter_path, revision)
        for name in filter(is_model, chosen.plan().judges):
            ensure_downloaded(name, any_type=True)
        wanted = _Wanted(limit, until, all_rotations, seed, repeats, kv_bits)
        _run(out, opened, resolved, chosen, wanted, Limits(batch_size, budget), as_json=as_json)


@app.command(cls=introduced_by(SCORE_INTRODUCTION), help=SCORE_HELP)
def score(
    run: RunArgument,
    answer_from: Annotated[
        AnswerFrom | None,
        typer.Option(
            "--answer-from",
            help="What of an answer is scored: its conclusion, or the whole text. [default: as the "
            "run's profile says]",
        ),
    ] = None,
    scorer: Annotated[
        Scorer | None,
        typer.Option(help="The version of the scoring rules. [default: as the run's profile says]"),
    ] = None,
    extractor: Annotated[
        str,
        typer.Option(
            metavar="rules|self|MODEL|URL",
            help="What decides about an answer that the rules leave open: nothing, the run's "
            "model, another model, or a server with OpenAI's chat interface.",
            rich_help_panel="Grading model",
        ),
    ] = RULES,
    extractor_model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The extractor's name at its URL.",
            rich_help_panel="Grading model",
        ),
    ] = "gpt-3.5-turbo-0125",
    grader: Annotated[
        str | None,
        typer.Option(
            metavar="self|MODEL|URL",
            help="What scores the free answers of mmvet. [default: nothing]",
            rich_help_panel="Grading model",
        ),
    ] = None,
    grader_model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The grader's name at its URL.", rich_help_panel="Grading model"
        ),
    ] = "gpt-4-1106-preview",
    grader_runs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Scores of an answer, of which the mean is taken.",
            rich_help_panel="Grading model",
        ),
    ] = 1,
    concurrency: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Prompts that a server is asked at once.",
            rich_help_panel="Grading model",
        ),
    ] = 8,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long to go on asking a server that is busy or silent.",
            rich_help_panel="Grading model",
        ),
    ] = 120.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.EVAL):
        check_positive("--grader-runs", grader_runs)
        check_positive("--concurrency", concurrency)
        if not 0 < patience < math.inf:
            raise UsageError(f"--patience {patience:g}: must be more than 0 seconds")
        load_fast_blas()  # before the first of the following imports MLX

        from llavacot_mlx.evaluate.llm_grader import LLMGrader, ReplyCache
        from llavacot_mlx.evaluate.score_run import grade_run, score_run

        grading = grade_run(run, answer_from=answer_from, scorer=scorer)

        def opened(name: str | None, model: str) -> GradingModel | None:
            if name is None or name == RULES:
                return None
            return open_grading_model(name, model, grading.record.model, patience)

        is_remote = any(is_url(name) for name in (extractor, grader or ""))
        llm = LLMGrader(
            ReplyCache(run),
            opened(extractor, extractor_model),
            opened(grader, grader_model),
            grader_runs,
            concurrency if is_remote else 1,
        )
        grades = _grade(llm, grading)
        _show_score(score_run(run, grading, grades), as_json=as_json)


def _grade(llm: LLMGrader, grading: Grading) -> list[GradeRow]:
    """Asks the models about what the rules leave open, with a bar."""
    from llavacot_mlx.cli.views.bars import CountBar

    count = llm.count(grading.open)
    if not count:
        return [each.grade for each in grading.open]
    with CountBar("grading", count) as bar:
        grades = llm.resolve(grading.open, bar.advance)
    asked, found = llm.cache.asked, llm.cache.found
    typer.echo(f"asked {asked:,} times; {found:,} replies were there already", err=True)
    return grades


@app.command(cls=introduced_by(COMPARE_INTRODUCTION), help=COMPARE_HELP)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="The folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The folder of another run.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        from llavacot_mlx.cli.views.eval_tables import print_comparison
        from llavacot_mlx.evaluate.compare import compare_runs
        from llavacot_mlx.evaluate.score_run import read_score

        names = (str(first), str(second))
        found = compare_runs(read_score(first), read_score(second), names)
        if not as_json:
            print_comparison(found, *names)
            return
        total = found.total or next(iter(found.sets.values()))
        value = {
            **asdict(total),
            "sets": {name: asdict(each) for name, each in found.sets.items()},
            "flips": [asdict(flip) for flip in found.flips],
        }
        typer.echo(json.dumps(value, ensure_ascii=False))


@app.command(cls=introduced_by(REPORT_INTRODUCTION), help=REPORT_HELP)
def report(
    runs: RunsArgument,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as an HTML page.")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(metavar="N", help="Answers of each set that the page shows, if not right."),
    ] = 100,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        check_positive("--rows", rows)
        if html is not None:
            check_can_write(html)
        from llavacot_mlx.cli.views.eval_tables import print_details, print_score
        from llavacot_mlx.evaluate.score_run import read_score

        scores = [(folder, read_score(folder)) for folder in runs]
        if html is not None:
            from llavacot_mlx.cli.html.eval_page import eval_page

            write_file(html, eval_page(scores, rows).encode(errors="replace"))
        if as_json:
            value = {str(folder): found.to_dict() for folder, found in scores}
            typer.echo(json.dumps(value, ensure_ascii=False))
            return
        for folder, found in scores:
            if len(scores) > 1:
                typer.echo(f"{printable_line(str(folder))}\n")
            print_score(found)
            typer.echo()
            print_details(found)
        if html is not None:
            typer.echo(f"wrote {printable_line(str(html))}", err=True)


@app.command(cls=introduced_by(EXPORT_INTRODUCTION), help=EXPORT_HELP)
def export(
    run: RunArgument,
    form: Annotated[ExportFormat, typer.Option("--for", help="Who reads the files.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where they are written. [default: RUN/export]"),
    ] = None,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        from llavacot_mlx.evaluate.export import export_run

        for path in export_run(run, form, out or run / "export"):
            typer.echo(f"wrote {printable_line(str(path))}")


@app.command(cls=introduced_by(CURVE_INTRODUCTION), help=CURVE_HELP)
def curve(
    runs: RunsArgument,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curve as a PNG file.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        from llavacot_mlx.cli.views.eval_tables import print_points
        from llavacot_mlx.evaluate.curve import curve_points, draw_curve
        from llavacot_mlx.evaluate.score_run import read_score
        from llavacot_mlx.train.plots import check_can_draw

        if png is not None:
            check_can_draw(png)
        points = curve_points([(str(folder), read_score(folder)) for folder in runs])
        if png is not None:
            draw_curve(points, png)
        if as_json:
            typer.echo(json.dumps([asdict(point) for point in points], ensure_ascii=False))
        else:
            print_points(points)


@app.command(cls=introduced_by(SUITE_INTRODUCTION), help=SUITE_HELP)
def suite(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file with a list of runs.")],
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.EVAL):
        from llavacot_mlx.evaluate.suite import read_suite

        wanted = read_suite(file)
        load_fast_blas()  # before the first of the following imports MLX
        for each in wanted.runs:
            with named(f"{file}: {each.name}"):
                _check_suite_run(each)
        for each in wanted.runs:
            typer.echo(f"{printable_line(each.name)}:", err=True)
            with named(f"{file}: {each.name}"):
                _run_of_suite(each, wanted.out / each.name)
        _show_suite([wanted.out / each.name for each in wanted.runs])


def _suite_profile(each: SuiteRun) -> Profile:
    search = None
    if each.search is not None:
        if each.search not in list(Method):
            raise UserError(f"search: {each.search!r} is not one of {', '.join(Method)}")
        search = Method(each.search)
    profile = _profile(
        each.profile, search, each.candidates, each.judge, is_shapes=_is_shapes_alone(each.sets)
    )
    if each.answer_from is None:
        return profile
    return replace(profile, answer_from=each.answer_from)


def _check_suite_run(each: SuiteRun) -> None:
    """Raises UserError for what can be seen before the first run."""
    _suite_profile(each)


def _run_of_suite(each: SuiteRun, out: Path) -> None:
    from llavacot_mlx.evaluate.open_sets import open_sets
    from llavacot_mlx.evaluate.runner import Limits

    data = None if each.data is None else Path(each.data)
    opened = open_sets(each.sets, data, first=each.first, limit=each.limit)
    adapter = None if each.adapter_path is None else Path(each.adapter_path)
    resolved = resolve_adapted_model(each.model, adapter)
    wanted = _Wanted(each.limit, None, False, each.seed, each.repeats, None)
    _run(out, opened, resolved, _suite_profile(each), wanted, Limits(), as_json=False)


def _show_suite(folders: list[Path]) -> None:
    """Prints the scores of all runs, and each against the first."""
    from llavacot_mlx.cli.views.eval_tables import print_comparison, print_points
    from llavacot_mlx.evaluate.compare import compare_runs
    from llavacot_mlx.evaluate.curve import curve_points
    from llavacot_mlx.evaluate.score_run import read_score

    scores = [(folder.name, read_score(folder)) for folder in folders]
    print_points(curve_points(scores))
    (first, base), *others = scores
    for name, score in others:
        print_comparison(compare_runs(base, score, (first, name)), first, name)


@dataclass(frozen=True)
class _Wanted:
    """The options of a run that its record keeps as they are."""

    limit: int | None
    until: float | None
    all_rotations: bool
    seed: int
    repeats: int
    kv_bits: int | None


def _check_numbers(
    limit: int | None, until: float | None, first: int, repeats: int, batch_size: int | None
) -> None:
    """Raises UsageError for a number that its flag cannot have."""
    check_positive("--limit", limit)
    check_positive("--repeats", repeats)
    check_positive("--batch-size", batch_size)
    if first < 0:
        raise UsageError(f"--first {first}: must be 0 or more")
    if until is not None and not 0 < until < 100:
        raise UsageError(f"--until {until:g}: must be more than 0 points and less than 100")
    if until is not None and limit is not None:
        raise UsageError("--limit with --until: drop one; both say where the run ends")


def _kv_budget(bits: int | None, budget: str | None) -> int | None:
    """The budget in bytes. Raises UserError that names the flag."""
    if bits not in (None, *BITS):
        raise UserError(f"--kv-bits {bits}: must be {' or '.join(map(str, BITS))}")
    if budget is None:
        return None
    with named("--kv-budget"):
        return KVLimits(bits, parse_bytes(budget)).budget


def _is_shapes_alone(names: str) -> bool:
    return all(name.strip().partition(":")[0] == "shapes" for name in names.split(","))


def _profile(
    name: str | None,
    search: Method | None,
    candidates: int | None,
    judge: str | None,
    *,
    is_shapes: bool,
) -> Profile:
    """The profile with the flags that change it. Raises UserError where they contradict it."""
    from llavacot_mlx.evaluate.profile import find_profile

    samples = search not in (None, Method.GREEDY)
    profile = find_profile(name or ("paper-greedy" if is_shapes and not samples else "paper"))
    changes = {"search": search and str(search), "candidates": candidates, "judge": judge}
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    if search is not None:  # another method's candidates and judge are not this one's
        given = {"candidates": None, "judge": None, **given}
    changed = replace(profile, **given)
    flags = " ".join(f"--{key} {value}" for key, value in given.items() if value is not None)
    with check_usage(), named(flags or f"--profile {profile.name}"):
        plan = changed.plan()
    for each in plan.judges:
        check_judge_name(each)
    return changed


def _run(
    out: Path,
    sets: list[BenchmarkSet],
    model: ResolvedModel,
    profile: Profile,
    wanted: _Wanted,
    limits: Limits,
    *,
    as_json: bool,
) -> None:
    from llavacot_mlx.evaluate.model_record import model_record
    from llavacot_mlx.evaluate.run_folder import RunRecord, SetRecord, begun
    from llavacot_mlx.evaluate.score_run import score_by_rule
    from llavacot_mlx.plan.plan_yaml import plan_to_dict
    from llavacot_mlx.train.distributed import Workers

    workers = Workers.all()
    record = RunRecord(
        sets={each.name: SetRecord.of(each) for each in sets},
        model=model_record(model.name, model.folder, model.adapter),
        profile=profile,
        plan=plan_to_dict(profile.plan()),
        **vars(wanted),
    )
    with begun(out, record, workers):
        try:
            _ask(out, record, sets, model, limits, workers)
        except KeyboardInterrupt:
            if workers.is_main:
                typer.echo("stopped; give the same command again to go on", err=True)
            raise
        if workers.is_main:
            _show_score(score_by_rule(out), as_json=as_json)


def _ask(
    out: Path,
    record: RunRecord,
    sets: list[BenchmarkSet],
    model: ResolvedModel,
    limits: Limits,
    workers: Workers,
) -> None:
    """Asks what has no answer yet, with a bar of this process's share."""
    from llavacot_mlx.cli.views.eval_progress import EvalProgress
    from llavacot_mlx.evaluate.answer_file import read_answers
    from llavacot_mlx.evaluate.runner import run_sets

    planned = {
        (each.name, question.index, question.rotation)
        for each in sets
        for group in workers.shard(tuple(each.take(record.limit)))
        for question in group
    }
    before = sum(key[:3] in planned for key in read_answers(out))
    total = len(planned) * record.repeats
    quiet = not workers.is_main
    if before and not quiet:
        typer.echo(f"{before} of {total} answers are there already", err=True)
    with EvalProgress(before, total, quiet=quiet) as progress:
        for answer in run_sets(lambda: load_assistant(model), out, record, sets, workers, limits):
            row = answer.row
            progress.count(answer.grade.right, row.decoded_tokens)
            if row.is_failed:
                what = f"{row.set}, row {row.index}: {row.error}; counted as failed"
                progress.say(f"note: {printable_line(what)}")


def _show_score(score: RunScore, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(score.to_dict(), ensure_ascii=False))
        return
    from llavacot_mlx.cli.views.eval_tables import print_score

    print_score(score)
