"""`llavacot convert`: converts a Hugging Face checkpoint or a PEFT adapter to an MLX folder."""

from __future__ import annotations

import enum
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llavacot_mlx.checkpoint.model_name import parse_model_name
from llavacot_mlx.cli.exit_codes import check_usage, handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.next_steps import calibration_note, next_command, shell_path, wrote_line
from llavacot_mlx.cli.options import DebugOption, Dtype, DtypeOption, ForceOption, RevisionOption
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.resolve_model import resolve_model
from llavacot_mlx.cli.units import format_bytes
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization

if TYPE_CHECKING:
    from llavacot_mlx.convert.convert import Estimate
    from llavacot_mlx.convert.recipes import Recipe

HELP = """\
Convert a Hugging Face checkpoint or PEFT adapter to MLX. -q quantizes the checkpoint. Use a \
converted adapter with --adapter-path.

\b
Examples:
  llavacot convert Xkev/Llama-3.2V-11B-cot -q --dtype bfloat16 --mlx-path llava-cot-4bit
  llavacot convert ./my-finetune
  llavacot convert ./my-finetune -q --q-bits 8 --mlx-path my-finetune-8bit
  llavacot convert ./peft-adapter --model ./llava-cot-4bit --mlx-path adapters
  llavacot convert ./my-finetune --recipe mixed-4-8 --mlx-path my-finetune-mixed
  llavacot convert ./my-finetune --recipe my.yaml

\b
A recipe is a name (2bit 3bit 4bit 5bit 6bit 8bit mxfp4 mxfp8 nvfp4 mixed-3-6
mixed-4-6 mixed-4-8), or a YAML file of patterns. The first match applies:
  language_model.lm_head: 8bit
  language_model.model.layers.-1.*: {bits: 6, group_size: 32}
  language_model.*: mxfp4
  vision_tower.*: bfloat16
"""

INTRODUCTION = """\
llavacot convert converts a Hugging Face checkpoint of a Llama-3.2-Vision
model to MLX.

Convert the published LLaVA-CoT to 4 bits; the first time, this downloads 43 GB:

  llavacot convert Xkev/Llama-3.2V-11B-cot -q --dtype bfloat16 --mlx-path llava-cot-4bit
"""


class Mode(enum.StrEnum):
    """MLX's quantization modes."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint (a folder, or an id on the Hugging Face hub) or a PEFT adapter's "
            "folder.",
        ),
    ] = None,
    hf_path: Annotated[
        str | None,
        typer.Option(
            "--hf-path", metavar="SRC", help="SRC by the name that mlx-lm and mlx-vlm give it."
        ),
    ] = None,
    mlx_path: Annotated[
        Path, typer.Option("--mlx-path", metavar="DIR", help="The folder to write.")
    ] = Path("mlx_model"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH|ID",
            help="The base model of a PEFT adapter. [default: the one that the adapter names]",
        ),
    ] = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    quantize: Annotated[
        bool, typer.Option("-q", "--quantize", help="Quantize the language model.")
    ] = False,
    q_bits: Annotated[
        int | None, typer.Option("--q-bits", help="Bits per weight. [default: 4; mxfp8: 8]")
    ] = None,
    q_group_size: Annotated[
        int | None,
        typer.Option(
            "--q-group-size",
            help="Weights per quantization group. [default: 64; mxfp4, mxfp8: 32; nvfp4: 16]",
        ),
    ] = None,
    q_mode: Annotated[
        Mode | None, typer.Option("--q-mode", help="Quantization mode. [default: affine]")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Quantize by a recipe (instead of -q)."),
    ] = None,
    quantize_vision: Annotated[
        bool,
        typer.Option("--quantize-vision", help="Quantize the vision tower as well, to 8 bits."),
    ] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the written weights with SRC. [default: when SRC is a folder]",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Convert a model on the hub while it is downloaded, without storing it.",
        ),
    ] = False,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.CONVERT):
        with check_usage():
            source = _source(source, hf_path, model)
            flags = _quantization_flags(quantize, q_bits, q_group_size, q_mode)
            if recipe is not None and flags:
                raise UserError(f"--recipe {recipe} with {flags[0]}: drop one; both quantize")
            if quantize_vision and recipe is None and not quantize:
                raise UserError("--quantize-vision: has no effect without -q or --recipe; add one")
            quantization = _quantization(q_bits, q_group_size, q_mode) if quantize else None
            if stream:
                _check_streamable(source, revision, verify)
        if mlx_path.exists() and not force:  # checked again later; here, before a long download
            raise UserError(f"{mlx_path} exists already: choose another --mlx-path, or add --force")

        from llavacot_mlx.checkpoint.adapter_config import is_adapter

        adapter = Path(source.strip()).expanduser()
        if is_adapter(adapter):
            if revision is not None:
                raise UserError("--revision: only for a model on the hub, not for an adapter")
            if flags or quantize_vision or recipe is not None or dtype is not None:
                raise UserError(f"{source} is an adapter; -q, --recipe and --dtype are for models")
            _convert_adapter(adapter, mlx_path, model, force)
            return
        if model is not None:
            raise UserError(f"--model {model}: only for an adapter, and {source} is not one")
        chosen = _recipe(quantization, recipe, quantize_vision)
        if stream:
            _convert_stream(source, revision, mlx_path, dtype, chosen, force=force)
        else:
            _convert_checkpoint(
                source, revision, mlx_path, dtype, chosen, force=force, verify=verify
            )


def _source(source: str | None, hf_path: str | None, model: str | None) -> str:
    """What to convert. Raises UserError where it is named twice or not at all."""
    if source is not None and hf_path is not None:
        raise UserError(f"--hf-path {hf_path} with {source}: drop one; both name the source")
    if source is None and hf_path is None:
        instead = model or "owner/name"
        raise UserError(f"SRC is missing: llavacot convert {shell_path(Path(instead))}")
    return source or hf_path or ""


def _check_streamable(source: str, revision: str | None, verify: bool | None) -> None:
    """Raises UserError for what --stream cannot do."""
    if parse_model_name(source, revision).folder is not None:
        raise UserError(f"--stream: for a model on the hub, and {source} is here; drop --stream")
    if verify:
        raise UserError("--verify with --stream: drop one; the source is not kept to compare with")


def _convert_stream(
    source: str,
    revision: str | None,
    mlx_path: Path,
    dtype: Dtype | None,
    quantization: Quantization | Recipe | None,
    *,
    force: bool,
) -> None:
    """Converts a model on the hub block by block; one that was downloaded before, from the disk."""
    from llavacot_mlx.checkpoint.hub import downloaded

    name = parse_model_name(source, revision)
    if downloaded(name) is not None:
        _say(f"{name} was downloaded before: converting it from the disk")
        _convert_checkpoint(
            source, revision, mlx_path, dtype, quantization, force=force, verify=False
        )
        return

    from llavacot_mlx.cli.views.bars import BytesBar
    from llavacot_mlx.convert import convert as converting
    from llavacot_mlx.convert.hub_source import open_streamed

    with open_streamed(name) as checkpoint, BytesBar("downloading and converting") as bar:
        converted = converting.convert(
            checkpoint.folder,
            mlx_path,
            dtype=dtype,
            quantization=quantization,
            force=force,
            name=name.id,
            block_source=checkpoint.blocks,
            estimated=_say_estimate,
            progress=lambda now: bar.update(now.read_bytes, now.total_bytes),
            notice=_say,
        )
    now = next_command(model=str(converted.folder))
    print(wrote_line(converted.folder, now, weight_bytes=converted.weight_bytes))


def _convert_checkpoint(
    source: str,
    revision: str | None,
    mlx_path: Path,
    dtype: Dtype | None,
    quantization: Quantization | Recipe | None,
    *,
    force: bool,
    verify: bool | None,
) -> None:
    name = parse_model_name(source, revision)
    checkpoint = resolve_model(str(name))

    from llavacot_mlx.cli.views.bars import BytesBar
    from llavacot_mlx.convert import convert as converting

    with BytesBar("converting") as bar:
        converted = converting.convert(
            checkpoint.folder,
            mlx_path,
            dtype=dtype,
            quantization=quantization,
            force=force,
            verify=name.folder is not None if verify is None else verify,
            name=name.id,
            estimated=_say_estimate,
            progress=lambda now: bar.update(now.read_bytes, now.total_bytes),
            notice=_say,
        )
    if note := calibration_note([checkpoint.folder], converted.folder):
        _say(note)
    now = next_command(model=str(converted.folder))
    print(wrote_line(converted.folder, now, weight_bytes=converted.weight_bytes))


def _convert_adapter(folder: Path, mlx_path: Path, model: str | None, force: bool) -> None:
    from llavacot_mlx.checkpoint.adapter_config import CONFIG_NAME, program_of
    from llavacot_mlx.convert.mlx_adapter import read_mlx_adapter
    from llavacot_mlx.convert.output_folder import OutputFolder
    from llavacot_mlx.convert.peft import base_of, read_peft

    name = model or base_of(folder)
    named_in = folder if model is None else None
    if name is None:
        raise UserError(f"{folder} does not name its base model; give --model")
    output = OutputFolder(mlx_path, "--mlx-path", force, marker=CONFIG_NAME)
    program = program_of(folder)
    if program is None:
        raise UserError(f"{folder} is an adapter of ours already: use it with --adapter-path")
    read = read_peft if program == "PEFT" else read_mlx_adapter
    resolved = resolve_model(name, named_in=named_in)
    written = read(folder, output, resolved.name, resolved.folder)
    print(wrote_line(written, next_command(adapter=written)))


def _say_estimate(estimate: Estimate) -> None:
    """Prints the estimate on a terminal only; a script gets the size from the last line."""
    if sys.stderr.isatty():
        before, after = format_bytes(estimate.source_bytes), format_bytes(estimate.weight_bytes)
        _say(
            f"{before} become {after}, {estimate.bits_per_weight:.2f} bits per weight; "
            f"{format_bytes(estimate.free_bytes)} are free"
        )


def _say(line: str) -> None:
    print(printable_line(line), file=sys.stderr)


def _quantization_flags(
    quantize: bool, bits: int | None, group_size: int | None, mode: Mode | None
) -> list[str]:
    """The quantization flags that were given. Raises UserError if -q is missing beside them."""
    given = {"--q-bits": bits, "--q-group-size": group_size, "--q-mode": mode}
    flags = [flag for flag, value in given.items() if value is not None]
    if flags and not quantize:
        flag = flags[0]
        raise UserError(f"{flag} {given[flag]}: has no effect without -q; add -q")
    return ["-q", *flags] if quantize else []


def _quantization(bits: int | None, group_size: int | None, mode: Mode | None) -> Quantization:
    """The quantization that the flags describe. Raises UserError for one that MLX cannot run."""
    from llavacot_mlx.convert.recipes import DEFAULTS

    usual = DEFAULTS[mode or Mode.AFFINE]
    chosen = Quantization(
        group_size=usual.group_size if group_size is None else group_size,
        bits=usual.bits if bits is None else bits,
        mode=usual.mode,
    )
    if chosen.error:
        given = {"--q-mode": mode, "--q-bits": bits, "--q-group-size": group_size}
        typed = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
        raise UserError(f"{typed}: {chosen.error}")
    return chosen


def _recipe(
    quantization: Quantization | None, recipe: str | None, quantize_vision: bool
) -> Quantization | Recipe | None:
    """What to quantize, and how: one quantization for the language model, or a recipe."""
    from llavacot_mlx.convert import recipes

    if recipe is not None:
        with nullcontext() if Path(recipe).suffix else check_usage():
            chosen = recipes.recipe_called(recipe)
    elif quantization is None or not quantize_vision:
        return quantization
    else:
        chosen = recipes.uniform(quantization)
    return recipes.with_vision(chosen) if quantize_vision else chosen
