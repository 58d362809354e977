"""`llavacot export`: writes a model or an adapter in the layout of Hugging Face's libraries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llavacot_mlx.cli.exit_codes import UsageError, handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.next_steps import wrote_line
from llavacot_mlx.cli.options import DebugOption, Dtype, DtypeOption, ForceOption, RevisionOption
from llavacot_mlx.cli.resolve_model import resolve_adapted_model
from llavacot_mlx.errors import UserError

HELP = """\
Export a model or an adapter to the Hugging Face format. transformers loads the exported model, \
and PEFT the exported adapter. llavacot convert converts both back.

Quantized weights are dequantized, so the exported folder is several times as large. With \
--adapter-path, the adapter is merged into the model.

\b
Examples:
  llavacot export ./llava-cot-4bit --save-path llava-cot
  llavacot export ./llava-cot-4bit --adapter-path adapters --save-path my-model
  llavacot export adapters --save-path my-adapter
"""

INTRODUCTION = """\
llavacot export exports a model to a Hugging Face checkpoint, and an adapter to
PEFT's format.

For example:

  llavacot export ./llava-cot-4bit --save-path llava-cot
  llavacot export adapters --save-path my-adapter
"""


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A model (a folder, or an id on the Hugging Face hub) or an adapter's folder.",
        ),
    ],
    save_path: Annotated[
        Path | None,
        typer.Option("--save-path", metavar="DIR", help="The folder to write. [default: hf_model]"),
    ] = None,
    hf_path: Annotated[
        Path | None,
        typer.Option(
            "--hf-path", metavar="DIR", hidden=True, help="The older name of --save-path."
        ),
    ] = None,
    adapter_path: Annotated[
        Path | None,
        typer.Option(
            "--adapter-path", metavar="DIR", help="An adapter to merge into the exported model."
        ),
    ] = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.CONVERT):
        from llavacot_mlx.checkpoint.adapter_config import is_adapter

        if hf_path is not None:
            if save_path is not None:
                raise UsageError("--hf-path with --save-path: drop --hf-path, the older name")
            print("note: --hf-path is called --save-path now", file=sys.stderr)
        output = save_path or hf_path or Path("hf_model")
        folder = Path(source.strip()).expanduser()
        if is_adapter(folder):
            if adapter_path is not None or dtype is not None:
                flag = "--adapter-path" if adapter_path is not None else "--dtype"
                raise UserError(f"{flag}: only for a model, and {source} is an adapter")
            _export_adapter(folder, output, force)
        else:
            _export_model(source, revision, output, adapter_path, dtype, force)


def _export_adapter(folder: Path, save_path: Path, force: bool) -> None:
    from llavacot_mlx.checkpoint.adapter_config import CONFIG_NAME
    from llavacot_mlx.convert.output_folder import OutputFolder
    from llavacot_mlx.convert.peft import write_peft

    written = write_peft(folder, OutputFolder(save_path, "--save-path", force, marker=CONFIG_NAME))
    now = f"PeftModel.from_pretrained(model, {str(written)!r})"
    print(wrote_line(written, now, where="in Python"))


def _export_model(
    source: str,
    revision: str | None,
    save_path: Path,
    adapter_path: Path | None,
    dtype: Dtype | None,
    force: bool,
) -> None:
    from llavacot_mlx.convert.output_folder import OutputFolder

    output = OutputFolder(save_path, "--save-path", force)
    output.check_replaceable()  # checked again later; here, before a long download
    model = resolve_adapted_model(source, adapter_path, revision)

    from llavacot_mlx.cli.views.bars import BytesBar
    from llavacot_mlx.convert import export as exporting
    from llavacot_mlx.convert.model_files import has_chat_template

    with BytesBar("exporting") as bar:
        written = exporting.export(
            model.folder,
            output,
            adapter=model.adapter,
            dtype=dtype,
            progress=lambda now: bar.update(now.read_bytes, now.total_bytes),
        )
    if not has_chat_template(written.folder):
        print(
            "note: there is no chat template in it, so apply_chat_template will fail: copy "
            "chat_template.json from the base model",
            file=sys.stderr,
        )
    now = f"MllamaForConditionalGeneration.from_pretrained({str(written.folder)!r})"
    print(wrote_line(written.folder, now, weight_bytes=written.weight_bytes, where="in Python"))
