"""`llavacot fuse`: merges an adapter into a model's weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llavacot_mlx.cli.exit_codes import handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.next_steps import calibration_note, next_command, wrote_line
from llavacot_mlx.cli.options import DebugOption, ForceOption, RevisionOption
from llavacot_mlx.cli.resolve_model import resolve_adapted_model

_ENOUGH = 0.8  # of an adapter's change, to be spoken of as the same model

HELP = """\
Merge an adapter into a model's weights. The fused model answers like the base model with \
--adapter-path, and can be shared without it.

Quantized layers are quantized again in the same way, which rounds the adapter's update. With \
--dequantize they are written unquantized, and the folder is several times as large.

\b
Examples:
  llavacot fuse --adapter-path adapters --save-path my-model
  llavacot fuse --model ./llava-cot-4bit --adapter-path adapters --save-path my-model --dequantize
"""

INTRODUCTION = """\
llavacot fuse merges an adapter into a model's weights.

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
            "--model",
            "-m",
            metavar="PATH|ID",
            help="The base model: a folder, or an id on the Hugging Face hub. [default: the one "
            "that the adapter was trained on]",
        ),
    ] = None,
    revision: RevisionOption = None,
    save_path: Annotated[
        Path, typer.Option("--save-path", metavar="DIR", help="The folder to write.")
    ] = Path("fused_model"),
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Write all weights unquantized.")
    ] = False,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.CONVERT):
        from llavacot_mlx.convert.output_folder import OutputFolder

        output = OutputFolder(save_path, "--save-path", force)
        output.check_replaceable()  # checked again later; here, before a long download
        base = resolve_adapted_model(model, adapter_path, revision)

        from llavacot_mlx.cli.views.bars import BytesBar
        from llavacot_mlx.convert import fuse as fusing

        with BytesBar("fusing") as bar:
            written = fusing.fuse(
                base.folder,
                base.adapter or adapter_path,
                output,
                dequantize=dequantize,
                progress=lambda now: bar.update(now.read_bytes, now.total_bytes),
            )
        now = next_command(model=str(written.folder))
        if note := calibration_note((base.folder, base.adapter or adapter_path), written.folder):
            print(note, file=sys.stderr)
        if written.survived is not None and written.survived < _ENOUGH:
            print(
                f"warning: only {written.survived:.0%} of what the adapter changes outlives the "
                "rounding to the base's bits; the fused model answers more like the base than with "
                "--adapter-path: add --dequantize",
                file=sys.stderr,
            )
        print(wrote_line(written.folder, now, weight_bytes=written.weight_bytes))
