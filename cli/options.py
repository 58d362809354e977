"""Options that several commands share: name, type, help, and the check of a count."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from llavacot_mlx.checked import brief
from llavacot_mlx.cli.exit_codes import UsageError, check_usage
from llavacot_mlx.cli.views.answer_view import ShowLevel
from llavacot_mlx.search.judges.plugins import check_judge_name


class Dtype(enum.StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH|ID",
        help="The model: a folder, or an id on the Hugging Face hub. "
        "[default: LLAVACOT_MODEL, or the demo model]",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of a model on the hub. [default: its main branch]",
    ),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter-path",
        metavar="DIR",
        help="An adapter to apply to the model. --model then defaults to the adapter's base.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="The folder that image paths are relative to. [default: the folder of the data]",
    ),
]
ImagesAnywhereOption = Annotated[
    bool,
    typer.Option(
        "--images-anywhere",
        help="Accept images outside of that folder, by their paths or by links.",
    ),
]
MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", metavar="N", help="Maximum number of tokens per answer.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Random seed; the same seed gives the same result.")
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype", help="Floating-point type of the unquantized weights. [default: as stored]"
    ),
]
SEARCH_HELP = (
    "greedy: always take the most likely token. sample: sample one answer. best-of-n: "
    "keep the answer that the judge scores highest. majority: keep the conclusion that "
    "most answers reach. sentence-beam, stage-beam: keep the best candidate after each "
    "sentence or stage. swires: sample several captions and reasonings, and go back to "
    "the captions when none is good enough. swires-code: swires with the parameters of "
    "its authors' code. All but greedy sample at temperature 0.6 and top-p 0.9 by default."
)
CandidatesOption = Annotated[
    int | None,
    typer.Option(
        "--candidates",
        metavar="N",
        help="Number of candidates to choose from. [default: 4; beams: 2]",
        rich_help_panel="Search",
    ),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="NAME|PATH",
        help="self: ask the model whether its text is correct. pairwise: ask it which of two "
        "is better. logprob: mean log-probability of the text. majority: number of answers "
        "with the same conclusion. Or an installed judge, or a model that mlx-vlm loads. "
        "[default: self; stage-beam: pairwise]",
        rich_help_panel="Search",
    ),
]
KVBitsOption = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        metavar="8|4",
        help="Quantize the KV cache to 8 or 4 bits.",
        rich_help_panel="Memory",
    ),
]
ShowOption = Annotated[
    ShowLevel | None,
    typer.Option(
        "--show",
        rich_help_panel="Output",
        help="all: the stages, a search's candidates and what the answer cost. stages: the four "
        "stages. answer: the conclusion only. [default: all]",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace DIR if it exists.")]
JsonOption = Annotated[
    bool,
    typer.Option("--json", rich_help_panel="Output", help="Print the result as one JSON object."),
]
PlainOption = Annotated[
    bool,
    typer.Option(
        "--plain",
        rich_help_panel="Output",
        help="Print plain text, as when output is not a terminal.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


_MAX_NUMBER = 2**31 - 1


def check_judge(name: str) -> None:
    """Raises UsageError for a name that no judge has, and UserError for a path without a model."""
    if "/" in name or Path(name).expanduser().exists():
        check_judge_name(name)
    else:
        with check_usage():
            check_judge_name(name)


def check_seed(seed: int) -> None:
    """Raises UsageError for a seed that is negative, or that a trace could not hold."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {brief(seed)}: must be 0 or more, and below 2^63")


def check_positive(flag: str, number: int | None) -> None:
    """Raises UsageError if the flag was given a number below 1, or one that overflows."""
    if number is not None and number < 1:
        raise UsageError(f"{flag} {brief(number)}: must be 1 or more")
    if number is not None and number > _MAX_NUMBER:
        raise UsageError(f"{flag} {brief(number)}: must be at most {_MAX_NUMBER}")
