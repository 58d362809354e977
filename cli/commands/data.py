"""`llavacot data`: finds problems in training rows, and shows their statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavacot_mlx.atomic import check_can_write, write_file
from llavacot_mlx.cli.command import TYPER_SETTINGS, Group, introduced_by
from llavacot_mlx.cli.exit_codes import FAILURE, handle_errors
from llavacot_mlx.cli.options import (
    DebugOption,
    ImagesAnywhereOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    check_positive,
)
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.resolve_model import resolve_model
from llavacot_mlx.errors import UserError

if TYPE_CHECKING:
    from llavacot_mlx.prompt.image_processor import ImageProcessor
    from llavacot_mlx.prompt.tokenizer import Tokenizer
    from llavacot_mlx.train.data.checks import Checked, CheckedRow
    from llavacot_mlx.train.data.dataset import Dataset

CHECK_HELP = """\
Find problems in training rows. It reports broken JSON; missing or unreadable images; stages that \
are missing, repeated, empty or out of order; answers that were not rewritten into stages, or that \
mention the reference answer; and rows that are too long for the model. The exit code is 1 if \
there is a problem.

FILE is a JSONL file of rows as in LLaVA-CoT-100k or in mlx-lm's chat format.

\b
Examples:
  llavacot data check train.jsonl --images images --model ./llava-cot-4bit
  llavacot data check train.jsonl --images images --json > report.json
"""

STATS_HELP = """\
Show statistics of training rows. They are the lengths of stages and rows, the sources of the \
rows, and the number of tiles per image.

FILE is a JSONL file of rows as in LLaVA-CoT-100k or in mlx-lm's chat format.

\b
Examples:
  llavacot data stats train.jsonl --images images --model ./llava-cot-4bit
  llavacot data stats train.jsonl --images images --png stats.png
"""

CHECK_INTRODUCTION = """\
llavacot data check finds problems in training rows.

For example:

  llavacot data check train.jsonl --images images
"""

STATS_INTRODUCTION = """\
llavacot data stats shows statistics of training rows.

For example:

  llavacot data stats train.jsonl --images images
"""

_LENGTHS = {"row": "row", "learned": "trained on"}
_MAX_LISTED = 5  # problems of a kind that the table lists; --json lists all

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A JSONL file with one row per line.")
]


app = typer.Typer(cls=Group, help="Check training data, or show its statistics.", **TYPER_SETTINGS)


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=introduced_by(CHECK_INTRODUCTION), help=CHECK_HELP)
def check(
    file: FileArgument,
    images: ImagesOption = None,
    images_anywhere: ImagesAnywhereOption = False,
    model: ModelOption = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Maximum length of a row in tokens. [default: the model's context length]",
        ),
    ] = None,
    as_json: JsonOption = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the JSON report to a file as well.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        from llavacot_mlx.train.data.checks import Checked

        if report is not None:
            check_can_write(report)
        reading = _Reading.of(file, images, images_anywhere, model, max_seq_length)
        found = Checked.of(reading.rows())
        text = json.dumps(_report(reading, found), ensure_ascii=False)
        if report is not None:
            write_file(report, f"{text}\n".encode())
        if as_json:
            typer.echo(text)
        else:
            _print_problems(reading.dataset, found)
        if found.problems:
            raise typer.Exit(FAILURE)


@app.command(cls=introduced_by(STATS_INTRODUCTION), help=STATS_HELP)
def stats(
    file: FileArgument,
    images: ImagesOption = None,
    images_anywhere: ImagesAnywhereOption = False,
    model: ModelOption = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the statistics as a PNG file.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        from llavacot_mlx.train.data.stats import Stats
        from llavacot_mlx.train.plots import check_can_draw, draw_stats

        if png is not None:
            check_can_draw(png)
        reading = _Reading.of(file, images, images_anywhere, model, None)
        found = Stats.of(reading.rows())
        if not found.rows:
            raise UserError(
                f"{file}: none of {_rows(found.unreadable)} is a conversation; "
                "llavacot data check says why"
            )
        if png is not None:
            draw_stats(found, png)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), ensure_ascii=False))
        else:
            _print_stats(found.to_dict())


@dataclass(frozen=True)
class _Reading:
    """A file of rows, with the tokenizer and image processor of the model that reads them."""

    dataset: Dataset
    model: str
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    max_tokens: int

    @classmethod
    def of(
        cls,
        file: Path,
        images: Path | None,
        images_anywhere: bool,
        model: str | None,
        max_seq_length: int | None,
    ) -> _Reading:
        check_positive("--max-seq-length", max_seq_length)
        from llavacot_mlx.checkpoint.config_json import load_config
        from llavacot_mlx.prompt.image_processor import ImageProcessor
        from llavacot_mlx.prompt.tokenizer import Tokenizer
        from llavacot_mlx.train.data.dataset import Dataset

        dataset = Dataset.open(file, images, images_anywhere=images_anywhere)
        chosen = resolve_model(model)
        config = load_config(chosen.folder)
        context = config.text.max_position_embeddings
        if max_seq_length is not None and max_seq_length > context:
            raise UserError(
                f"--max-seq-length {max_seq_length}: the model's context is {context} tokens"
            )
        return cls(
            dataset,
            chosen.name,
            Tokenizer.load(chosen.folder, config),
            ImageProcessor.load(chosen.folder, config.vision),
            max_seq_length or context,
        )

    def rows(self) -> Iterator[CheckedRow]:
        """Every row with its problems; a bar on stderr shows the progress."""
        from llavacot_mlx.cli.views.bars import CountBar
        from llavacot_mlx.train.data.checks import check_rows

        checked = check_rows(self.dataset, self.tokenizer, self.image_processor, self.max_tokens)
        with CountBar("checking rows", len(self.dataset)) as bar, closing(checked):
            for row in checked:
                yield row
                bar.advance()


def _report(reading: _Reading, found: Checked) -> dict[str, Any]:
    dataset = reading.dataset
    return {
        "file": str(dataset.file),
        "sha256": dataset.digest,
        "images": str(dataset.images),
        "model": reading.model,
        "max_seq_length": reading.max_tokens,
        "four_stages": dataset.has_stages,
        "rows": len(dataset),
        "good": len(found.rows),
        "bad": len(dataset) - len(found.rows),
        "counts": {kind: len(problems) for kind, problems in found.by_kind.items()},
        "problems": [asdict(problem) for problem in found.problems],
        "lost_folders": [asdict(folder) for folder in found.lost_folders],
    }


def _print_problems(dataset: Dataset, found: Checked) -> None:
    from llavacot_mlx.cli.views.tables import Column, print_table
    from llavacot_mlx.train.data.checks import LostFolder, grouped

    if not dataset.has_stages:
        typer.echo("no answer has stages, so stages are not checked (plain chats)")
    if not found.problems:
        typer.echo(f"{_rows(len(dataset))}, no problems")
        return
    cells = []
    for kind, problems in found.by_kind.items():
        items = grouped(problems, found.lost_folders)
        listed = [
            printable_line(
                str(each) if isinstance(each, LostFolder) else f"row {each.row}: {each.detail}"
            )
            for each in items[:_MAX_LISTED]
        ]
        if len(items) > _MAX_LISTED:
            listed.append(f"… and {len(items) - _MAX_LISTED} more")
        cells.append((kind.value, f"{len(problems):,}", "\n".join(listed)))
    print_table((Column("problem"), Column("times", number=True), Column("where")), cells)
    bad = len(dataset) - len(found.rows)
    typer.echo(f"{bad:,} of {_rows(len(dataset))} have problems (--json lists all)")


def _print_stats(found: dict[str, Any]) -> None:
    from llavacot_mlx.cli.views.tables import Column, print_table

    typer.echo(
        f"{_rows(found['rows'])}, {found['answers']:,} answers, {found['pictures']:,} images"
    )
    if found["unreadable"]:
        typer.echo(f"not counted: {_rows(found['unreadable'])} that cannot be read")
    if found["with_problems"]:
        typer.echo(f"{_rows(found['with_problems'])} with problems: llavacot data check lists them")
    numbers = ("count", "mean", "median", "max")
    lengths = [
        (_LENGTHS.get(name, name.upper()), *(f"{figures[number]:,.10g}" for number in numbers))
        for name, figures in found["tokens"].items()
        if figures is not None
    ]
    print_table(
        (Column("tokens"), *(Column(number, number=True) for number in numbers)),
        lengths,
    )
    print_table(
        (Column("source"), Column("rows", number=True)),
        [(printable_line(source), f"{rows:,}") for source, rows in found["sources"].items()],
    )
    print_table(
        (Column("tiles"), Column("images", number=True)),
        [(tiles, f"{rows:,}") for tiles, rows in found["tiles"].items()],
    )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"
