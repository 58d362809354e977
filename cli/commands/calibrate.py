"""`llavacot calibrate`: measures a judge's scores, from which swires takes its threshold."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from llavacot_mlx import demo
from llavacot_mlx.atomic import check_can_write
from llavacot_mlx.cli.exit_codes import check_usage, handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.load_assistant import load_assistant
from llavacot_mlx.cli.options import (
    AdapterOption,
    DebugOption,
    ImagesAnywhereOption,
    ImagesOption,
    MaxTokensOption,
    ModelOption,
    RevisionOption,
    SeedOption,
    check_judge,
    check_positive,
    check_seed,
)
from llavacot_mlx.cli.resolve_model import ResolvedModel, ensure_downloaded, resolve_adapted_model
from llavacot_mlx.errors import UserError
from llavacot_mlx.plan.plan import (
    MAJORITY,
    PUBLISHED_DEVIATIONS,
    SELF,
    Settings,
    make_plan,
)
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.calibration import (
    FILE_NAME,
    ScoreStats,
    load_calibration,
    save_calibration,
    scores_by_stage,
)
from llavacot_mlx.search.judges.plugins import is_model
from llavacot_mlx.search.question_file import QuestionRow, read_questions

HELP = """\
Calibrate a judge's threshold for --search swires. It saves the mean and the standard deviation \
of the judge's scores on your questions in the model's folder, or in the adapter's folder with \
--adapter-path. Use questions that you will not evaluate on.

FILE is a JSONL file with rows like {"image": "a.png", "question": "How many?"}, or as in \
LLaVA-CoT-100k.

\b
Examples:
  llavacot calibrate questions.jsonl --images pictures --model ./llava-cot-4bit
  llavacot calibrate train.jsonl --images images --limit 200 --judge logprob
"""

_PER_QUESTION = 4  # scores of a stage: the first round of swires has four candidates
_FEW = 30  # scores of a stage below which their mean and deviation are guesses

INTRODUCTION = """\
llavacot calibrate calibrates a judge's threshold for --search swires.

For example:

  llavacot calibrate questions.jsonl --images pictures --model ./llava-cot-4bit
"""


def calibrate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A JSONL file with one question per line.")
    ],
    images: ImagesOption = None,
    images_anywhere: ImagesAnywhereOption = False,
    model: ModelOption = None,
    revision: RevisionOption = None,
    adapter_path: AdapterOption = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="self, logprob, pairwise, an installed judge, or a model that mlx-vlm loads.",
        ),
    ] = SELF,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use only the first N questions.")
    ] = None,
    max_tokens: MaxTokensOption = 2048,
    seed: SeedOption = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a measurement of more scores.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.CALIBRATE):
        with check_usage():
            if judge == MAJORITY:
                raise UserError(
                    "--judge majority: majority counts whole answers, but swires judges stages"
                )
        check_judge(judge)
        check_positive("--limit", limit)
        check_positive("--max-tokens", max_tokens)
        check_seed(seed)
        questions = read_questions(file, images or file.parent, images_anywhere=images_anywhere)
        rows = list(itertools.islice(questions, limit))
        if not rows:
            raise UserError(f"{file}: contains no questions")
        resolved = resolve_adapted_model(model, adapter_path, revision)
        folder = resolved.adapter or resolved.folder
        known = load_calibration(folder)
        _check_replaceable(folder, known.get(judge, {}), _PER_QUESTION * len(rows), force)
        if is_model(judge):
            ensure_downloaded(judge, any_type=True)
        stats = _measure(rows, resolved, judge, max_tokens, seed)
        _print(stats)
        for warning in _warnings(stats):
            typer.echo(f"warning: {warning}", err=True)
        most = max(each.count for each in stats.values())
        _check_replaceable(folder, known.get(judge, {}), most, force)
        written = save_calibration(folder, {**known, judge: stats})
        typer.echo(f"written to {written}", err=True)


def _check_replaceable(
    folder: Path, known: Mapping[Stage, ScoreStats], most: int, force: bool
) -> None:
    """Raises UserError where a measurement of at most `most` scores must not be written.

    The packaged demo model's is never replaced, and a larger one only with `force`.
    """
    if demo.is_packaged(folder):
        raise UserError(
            f"{folder} belongs to the package, which is never changed: give --model the folder of "
            "your model, or of a copy of this one"
        )
    check_can_write(folder / FILE_NAME)
    larger = max((each.count for each in known.values()), default=0)
    if larger > most and not force:
        raise UserError(
            f"{folder / FILE_NAME} has {larger} scores of this judge, and this measurement "
            f"{most} at most: take more questions, or --force to replace them"
        )


def _warnings(stats: Mapping[Stage, ScoreStats]) -> Iterator[str]:
    """What makes a threshold from these scores unreliable."""
    for stage, found in stats.items():
        if found.count < _FEW:
            yield f"{stage}: {found.count} scores are few; {_FEW} or more give a stable threshold"
        if found.std == 0:
            yield (
                f"{stage}: all scores are {found.mean:.4f}, so this judge cannot tell candidates "
                "apart, and the threshold means nothing"
            )


def _measure(
    rows: list[QuestionRow], model: ResolvedModel, judge: str, max_tokens: int, seed: int
) -> dict[Stage, ScoreStats]:
    """Runs the first round of swires on every question, and returns the judge's scores by stage."""
    from llavacot_mlx.cli.views.bars import CountBar

    plan = make_plan(Settings("swires", judge=judge, max_retraces=0))
    assistant = load_assistant(model)
    scores: dict[Stage, list[float]] = defaultdict(list)
    notices: set[str] = set()
    with CountBar("asking", len(rows)) as bar:
        for row in rows:
            try:
                trace = assistant.ask(
                    row.image, row.question, search=plan, max_tokens=max_tokens, seed=seed
                )
            except UserError as problem:
                raise UserError(f"{row.where}: {problem}") from None
            for stage, given in scores_by_stage(trace).items():
                scores[stage] += given
            notices |= set(trace.search.notices)
            bar.advance()
    for notice in sorted(notices):
        typer.echo(f"note: {notice}", err=True)
    if not scores:
        raise UserError(f"the judge {judge} came to no verdict on any of {len(rows)} questions")
    return {stage: ScoreStats.of(scores[stage]) for stage in Stage if stage in scores}


def _print(stats: dict[Stage, ScoreStats]) -> None:
    typer.echo(f"{'stage':<12}{'mean':>9}{'std':>9}{'threshold':>11}{'scores':>9}")
    for stage, found in stats.items():
        threshold = found.threshold(PUBLISHED_DEVIATIONS)
        typer.echo(
            f"{stage.value:<12}{found.mean:>9.4f}{found.std:>9.4f}{threshold:>11.4f}"
            f"{found.count:>9}"
        )
