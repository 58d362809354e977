"""`llavacot ask`: answers a question about an image."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llavacot_mlx import demo
from llavacot_mlx.atomic import check_can_write
from llavacot_mlx.checked import brief
from llavacot_mlx.checkpoint.hub import find_here
from llavacot_mlx.cli.exit_codes import check_usage, handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.load_assistant import load_assistant
from llavacot_mlx.cli.next_steps import try_it
from llavacot_mlx.cli.options import (
    SEARCH_HELP,
    AdapterOption,
    CandidatesOption,
    DebugOption,
    JsonOption,
    JudgeOption,
    KVBitsOption,
    MaxTokensOption,
    ModelOption,
    PlainOption,
    RevisionOption,
    SeedOption,
    ShowOption,
    check_judge,
    check_positive,
    check_seed,
)
from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.resolve_model import ResolvedModel, ensure_downloaded, resolve_adapted_model
from llavacot_mlx.cli.started import seconds_since_start
from llavacot_mlx.cli.stdin import read_stdin
from llavacot_mlx.cli.units import format_bytes, parse_bytes
from llavacot_mlx.cli.usage_errors import check_order
from llavacot_mlx.cli.views.answer_view import AnswerView, ShowLevel
from llavacot_mlx.cli.views.choose_view import choose_view, status_view
from llavacot_mlx.cli.views.ending import no_conclusion
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.gpu_errors import gpu_error
from llavacot_mlx.model.kv_budget import BITS, KVLimits
from llavacot_mlx.plan.plan import Method, Plan, Settings, make_plan
from llavacot_mlx.plan.plan_yaml import read_plan
from llavacot_mlx.request import Request
from llavacot_mlx.search.judges.plugins import check_judge_name, is_model
from llavacot_mlx.trace.answer_events import Answered, Interrupted
from llavacot_mlx.trace.file import MAX_TRACED_IMAGE, write_trace
from llavacot_mlx.trace.record import Trace

if TYPE_CHECKING:
    from PIL import Image

    from llavacot_mlx.prompt.images import OpenedImage


HELP = """\
Ask about an image. The answer comes in four stages: a summary of the question, a caption of the \
image, the reasoning and the conclusion.

\b
Examples:
  llavacot ask shapes.png "How many red circles are there?"
  llavacot ask chart.png "Which year was best?" --model ./llava-cot-4bit
  llavacot ask chart.png "Which year was best?" --answer-only
  llavacot ask chart.png "Which year was best?" --search swires --trace search.json
  curl -s https://example.com/a.jpg | llavacot ask - "What is this?" --json
"""

_DEMO_WARNING = (
    "no --model given, so the demo model answered: it knows drawings of colored shapes only, "
    "and this picture is nothing like them; do not rely on its answer"
)

INTRODUCTION = """\
llavacot ask answers a question about an image in four stages: a summary of the
question, a caption of the image, the reasoning and the conclusion.
"""

_MAX_QUESTION_BYTES = 4_000_000  # a million characters, the longest text that is encoded
_NO_QUESTION = 'QUESTION is empty; ask something, such as "What does the image show?"'


def introduction() -> str:
    """Says what the command is for, and shows a command that can be run unchanged."""
    return f"{INTRODUCTION}\n{try_it()}"


def ask(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="A picture: PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP …; - reads it from stdin.",
        ),
    ],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="The question; - reads it from stdin.")
    ],
    model: ModelOption = None,
    revision: RevisionOption = None,
    adapter_path: AdapterOption = None,
    search: Annotated[
        Method | None,
        typer.Option(
            metavar="METHOD",
            help=f"{SEARCH_HELP} [default: greedy]",
            rich_help_panel="Search",
        ),
    ] = None,
    candidates: CandidatesOption = None,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Candidates to keep after each step. [default: 1; swires: half]",
            rich_help_panel="Search",
        ),
    ] = None,
    judge: JudgeOption = None,
    max_retraces: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Maximum number of retraces. [default: 3; swires-code: 4]",
            rich_help_panel="Search",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Score at which swires accepts a candidate. [default: the judge's calibrated "
            "threshold]",
            rich_help_panel="Search",
        ),
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="A YAML file that configures each stage of the search.",
            rich_help_panel="Search",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "--temp",
            help="Sampling temperature; above 0, it implies --search sample.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            help="Sample from the top tokens, up to this total probability.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    max_tokens: MaxTokensOption = 2048,
    seed: SeedOption = 0,
    kv_bits: KVBitsOption = None,
    kv_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Stop before the KV cache exceeds this size, such as 2GB.",
            rich_help_panel="Memory",
        ),
    ] = None,
    repetition_stop: Annotated[
        bool,
        typer.Option(
            "--repetition-stop/--no-repetition-stop",
            help="Stop where the model only repeats the same tokens.",
        ),
    ] = True,
    speculation: Annotated[
        bool,
        typer.Option(
            "--speculation/--no-speculation",
            help="Guess tokens from earlier text and verify them together; same answer, faster.",
        ),
    ] = True,
    trace_file: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Save the whole search to a file for llavacot trace.",
            rich_help_panel="Output",
        ),
    ] = None,
    show: ShowOption = None,
    answer_only: Annotated[
        bool,
        typer.Option(
            "--answer-only", help="Print the conclusion and nothing else.", rich_help_panel="Output"
        ),
    ] = False,
    as_json: JsonOption = False,
    plain: PlainOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.ANSWER):
        settings = Settings(
            search=search,
            candidates=candidates,
            keep=keep,
            judge=judge,
            temperature=temperature,
            top_p=top_p,
            max_retraces=max_retraces,
            threshold=threshold,
        )
        with check_usage():
            plan = _plan(settings) if plan_file is None else None
            limits = _limits(kv_bits, kv_budget)
            check_positive("--max-tokens", max_tokens)
            check_seed(seed)
            _check_output(show, as_json=as_json, answer_only=answer_only)
            _check_words(image, question)
            if plan_file is not None and (flags := _as_flags(settings)):
                raise UserError(
                    f"--plan {plan_file} with {flags}: drop one; the plan already sets this"
                )
        if plan is None:
            assert plan_file is not None
            plan = read_plan(plan_file)
        for name in plan.judges:
            if name == judge:
                check_judge(name)
            else:
                check_judge_name(name)
        if trace_file is not None:
            check_can_write(trace_file)
        question = _read_question(question)
        opened, image_bytes = _read_image(image)
        if trace_file is not None and len(image_bytes) > MAX_TRACED_IMAGE:
            raise UserError(
                f"--trace: the picture holds {format_bytes(len(image_bytes))}, and a trace at most "
                f"{format_bytes(MAX_TRACED_IMAGE)}; scale it down first"
            )
        resolved = resolve_adapted_model(model, adapter_path, revision)
        is_demo = demo.is_packaged(resolved.folder) and resolved.adapter is None
        if is_demo and model is None:
            opened = dataclasses.replace(opened, check=_demo_warning)
        request = Request(
            image=opened,
            question=question,
            plan=plan,
            max_tokens=max_tokens,
            seed=seed,
            limits=limits,
            repetition_stop=repetition_stop,
            speculation=speculation,
        )
        for name in filter(is_model, plan.judges):
            if plan_file is None:
                ensure_downloaded(name, any_type=True)
            else:
                find_here(name, plan_file, f"fetch it first: hf download {brief(name)}")
        if as_json or answer_only:
            view = status_view(sys.stderr)
        else:
            unit = plan.steps[0].unit
            view = choose_view(
                sys.stdout,
                show or ShowLevel.ALL,
                unit,
                plain=plain,
                waited=seconds_since_start,
            )

        from llavacot_mlx.prompt.image_source import image_name

        def finish(trace: Trace) -> Trace:
            """Adds the names that the person typed, and saves the trace for --trace."""
            trace = dataclasses.replace(trace, image=image_name(image), model=resolved.name)
            if trace_file is not None:
                write_trace(trace_file, trace, image_bytes)
            return trace

        trace = _answer(request, resolved, view, finish)
        warned = _DEMO_WARNING in trace.search.notices
        if warned and (answer_only or show in (ShowLevel.STAGES, ShowLevel.ANSWER)):
            # no notes are shown with the answer alone
            print(f"note: {_DEMO_WARNING}", file=sys.stderr)
        if as_json:
            _print_json(trace)
        elif answer_only:
            print(printable(_conclusion(trace)))
        elif show is ShowLevel.ANSWER:
            _conclusion(trace)  # the view has shown it; without one, this is an error


def _answer(
    request: Request, model: ResolvedModel, view: AnswerView, finish: Callable[[Trace], Trace]
) -> Trace:
    """Answers while the view shows it, and returns the finished trace.

    If the answer is stopped, its trace up to that point is finished as well.
    """
    with view:
        view.set_status(f"loading {model.short_name}")
        assistant = load_assistant(model)
        view.set_status("reading the image")
        answer = assistant.stream(request)
        try:
            for event in answer:
                view.show(event)
        except (KeyboardInterrupt, UserError, RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and gpu_error(error) is None:
                raise  # a bug of ours
            trace = answer.so_far()
            if trace.token_ids:
                view.show(Interrupted(trace))
                finish(trace)
            raise
    assert isinstance(event, Answered)
    return finish(event.trace)


def _plan(given: Settings) -> Plan:
    """The plan that the flags describe. Raises UserError where they contradict each other."""
    temperature, top_p = given.temperature, given.top_p
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"--temperature {temperature:g}: must be 0 or more, such as 0.6")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p:g}: must be more than 0 and at most 1, such as 0.9")
    if given.search == Method.SAMPLE and temperature == 0:
        raise UserError("--search sample with --temperature 0: drop one; 0 is greedy")
    if given.search == Method.GREEDY and temperature:
        raise UserError(
            f"--search greedy with --temperature {temperature:g}: greedy does not sample; "
            "drop one, or use --search sample"
        )
    if given.search in (None, Method.GREEDY) and not temperature and top_p is not None:
        raise UserError(f"--top-p {top_p:g}: greedy does not sample; add --search sample")
    try:
        return make_plan(given)
    except UserError as error:
        raise UserError(f"{_as_flags(given)}: {error}") from None


def _check_words(image: str, question: str) -> None:
    """Raises UserError where IMAGE or QUESTION cannot be what was meant."""
    if image == question == "-":
        raise UserError("IMAGE and QUESTION are both -; stdin can only be one of them")
    if not question.strip():
        raise UserError(_NO_QUESTION)
    check_order(image, question)


def _as_flags(given: Settings) -> str:
    """The settings as the flags that a person typed, such as `--search swires --keep 2`."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in vars(given).items()}
    shown = {
        flag: f"{value:g}" if isinstance(value, float) else value for flag, value in flags.items()
    }
    return " ".join(f"{flag} {value}" for flag, value in shown.items() if value is not None)


def _limits(kv_bits: int | None, kv_budget: str | None) -> KVLimits:
    if kv_bits not in (None, *BITS):
        raise UserError(f"--kv-bits {kv_bits}: must be {' or '.join(map(str, BITS))}")
    if kv_budget is None:
        return KVLimits(kv_bits)
    try:
        return KVLimits(kv_bits, parse_bytes(kv_budget))
    except UserError as error:
        raise UserError(f"--kv-budget: {error}") from None


def _check_output(show: ShowLevel | None, *, as_json: bool, answer_only: bool) -> None:
    """Raises UserError where two flags say what to print."""
    if as_json and answer_only:
        raise UserError("--json with --answer-only: drop one; the JSON object includes the answer")
    if show is not None and (as_json or answer_only):
        flag = "--json" if as_json else "--answer-only"
        raise UserError(f"--show {show} with {flag}: drop one; {flag} already says what to print")


def _read_image(image: str) -> tuple[OpenedImage, bytes]:
    """The image, and the bytes of its file.

    It is decoded here, so that a damaged file is reported before a model is loaded.
    """
    from llavacot_mlx.prompt.image_source import MAX_IMAGE_BYTES, image_name, read_named_image
    from llavacot_mlx.prompt.images import open_with_notes

    if image != "-":
        data = read_named_image(image)
        return open_with_notes(data, image_name(image)), data
    if sys.stdin.isatty():
        raise UserError(
            "IMAGE is -, but nothing is piped in; llavacot ask - QUESTION < picture.png"
        )
    data = read_stdin("the picture", MAX_IMAGE_BYTES)
    return open_with_notes(data), data


def _demo_warning(image: Image.Image) -> str | None:
    """What to say if the demo model cannot know what the image shows."""
    from llavacot_mlx.demo.likeness import is_like_the_world

    return None if is_like_the_world(image) else _DEMO_WARNING


def _read_question(question: str) -> str:
    if question == "-":
        data = read_stdin("QUESTION", _MAX_QUESTION_BYTES)
        question = data.decode(errors="surrogateescape").rstrip("\r\n")
    if not question.strip():
        raise UserError(_NO_QUESTION)
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("QUESTION is not UTF-8 text; check the terminal's encoding") from None
    return question


def _conclusion(trace: Trace) -> str:
    if not trace.answer:
        raise UserError(no_conclusion(trace))
    return trace.answer


def _print_json(trace: Trace) -> None:
    # JSON is UTF-8 in any locale; a file name that is not UTF-8 is escaped.
    sys.stdout.buffer.write(trace.to_json().encode(errors="backslashreplace") + b"\n")
