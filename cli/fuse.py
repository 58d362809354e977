"""`llavacot fuse`: an adapter becomes part of a model's weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llavacot_mlx.cli.exits import ending_well
from llavacot_mlx.cli.figures import size
from llavacot_mlx.cli.model import adapted_model
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.welcome import next_command

HELP = """\
Write a model folder with an adapter merged into its weights. It answers like the model with \
--adapter-path, and can be shared without the base.

What was quantised is quantised again as it was, which rounds the adapter's change; with \
--dequantize nothing is, and the folder is several times as large.

\b
Examples:
  llavacot fuse --adapter-path adapters --save-path my-model
  llavacot fuse --model ./llava-cot-4bit --adapter-path adapters --save-path my-model --dequantize
"""

INTRODUCTION = """\
llavacot fuse writes a model folder with an adapter merged into its weights.
"""

EXAMPLE = """\
For example:

  llavacot fuse --adapter-path adapters --save-path my-model
"""


def fuse(
    adapter_path: Annotated[
        Path, typer.Option("--adapter-path", metavar="DIR", help="The adapter's folder.")
    ] = Path("adapters"),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|ID",
            help="The adapter's base: a folder, or an id on the hub. [default: what it was "
            "trained on]",
        ),
    ] = None,
    save_path: Annotated[
        Path, typer.Option("--save-path", metavar="DIR", help="The folder to write.")
    ] = Path("fused_model"),
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Write all weights unquantised.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DIR if it exists.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when something goes wrong.")
    ] = False,
) -> None:
    with ending_well(debug=debug):
        from llavacot_mlx.convert.target import Target

        target = Target(save_path, "--save-path", force)
        target.check_replaceable()  # asked again later; here, before a long download
        base = adapted_model(model, adapter_path)

        from llavacot_mlx.cli.render import BytesBar
        from llavacot_mlx.convert import fuse as fusing

        with BytesBar(sys.stderr, "fusing") as bar:
            written = fusing.fuse(
                base.folder,
                base.adapter or adapter_path,
                target,
                dequantize=dequantize,
                progress=lambda now: bar.at(now.read_bytes, now.total_bytes),
            )
        print(
            f"wrote {printable_line(str(written.folder))}, {size(written.weight_bytes)}; now: "
            f"{next_command(model=str(written.folder))}"
        )
