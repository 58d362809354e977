"""`llavacot info`: what a model holds and what it needs, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavacot_mlx.cli.exit_codes import handle_errors
from llavacot_mlx.cli.options import DebugOption, JsonOption, MaxTokensOption
from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.units import format_bytes
from llavacot_mlx.errors import UserError

if TYPE_CHECKING:
    from llavacot_mlx.checkpoint.finite import OddTensor
    from llavacot_mlx.checkpoint.sizes import Memory, Part
    from llavacot_mlx.checkpoint.weights import SourceTensor
    from llavacot_mlx.model.config import ModelConfig, QuantizationMap

HELP = """\
Show a model's size and the memory that an answer needs. It reads only the headers of the weight \
files; of a model on the hub, it downloads nothing else.

\b
Examples:
  llavacot info ./llava-cot-4bit
  llavacot info Xkev/Llama-3.2V-11B-cot
  llavacot info ./llava-cot-4bit --candidates 8 --values
"""

INTRODUCTION = """\
llavacot info shows a model's size, and whether it fits in this machine's memory.
"""

EXAMPLE = """\
For example:

  llavacot info Xkev/Llama-3.2V-11B-cot
"""


def info(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder, or an id on the Hugging Face hub."),
    ],
    candidates: Annotated[
        int, typer.Option(metavar="N", help="Number of answers decoded in one batch.")
    ] = 4,
    max_tokens: MaxTokensOption = 2048,
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            help="Read all weights, and list tensors with NaN, infinite or only zero values.",
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        for flag, number in (("--candidates", candidates), ("--max-tokens", max_tokens)):
            if number < 1:
                raise UserError(f"{flag} {number}: must be 1 or more")
        config, tensors, is_here = _opened(model)
        if values and not is_here:
            raise UserError(f"--values: {model} is not downloaded, and its values are in its files")

        from llavacot_mlx.checkpoint.finite import odd_tensors
        from llavacot_mlx.checkpoint.sizes import memory_for, parts_of
        from llavacot_mlx.generate.device import memory_of_this_machine

        tiles = config.vision.max_num_tiles
        parts = parts_of(config, tensors)
        memory = memory_for(config, tensors, tiles, candidates, max_tokens)
        limit, kind = memory_of_this_machine()
        odd = list(odd_tensors(tensors.values())) if values else None
        if as_json:
            told = _told(model, config, parts, memory, candidates, max_tokens, limit, odd)
            typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
            return
        _print_parts(model, config, parts)
        typer.echo(
            f"\na picture of {tiles} tiles, {candidates} candidates of {max_tokens} tokens:\n"
            f"  weights {format_bytes(memory.weights)} + picture {format_bytes(memory.picture)} "
            f"+ text {format_bytes(memory.text)} + encoding about {format_bytes(memory.working)} "
            f"= {format_bytes(memory.total)}"
        )
        verdict = "holds it" if memory.total <= limit else "does not hold it"
        typer.echo(f"  this machine ({format_bytes(limit)} {kind}) {verdict}")
        if odd is not None:
            _print_odd(odd)


def _opened(model: str) -> tuple[ModelConfig, dict[str, SourceTensor], bool]:
    """The configuration and the tensors of a model, and whether its files are on this machine."""
    from llavacot_mlx.checkpoint import hub
    from llavacot_mlx.checkpoint.config_json import load_config
    from llavacot_mlx.checkpoint.weights import model_of, named_tensors, source_tensors

    folder = Path(model).expanduser()
    here = folder if folder.exists() or not hub.is_id(model) else hub.downloaded(model)
    if here is not None:
        here = hub.find(str(here), lambda _: None)
        config, tensors = load_config(here), source_tensors(here)
    else:
        from llavacot_mlx.checkpoint.hub_headers import fetch_headers

        headers = fetch_headers(model)
        config, tensors = headers.config, named_tensors(headers.tensors, Path(model))
    model_of(config, tensors, here or Path(model))
    return config, tensors, here is not None


def _print_parts(model: str, config: ModelConfig, parts: tuple[Part, ...]) -> None:
    text, vision = config.text, config.vision
    typer.echo(
        f"{printable_line(model)}: {text.num_hidden_layers} text layers, "
        f"{len(text.cross_attention_layers)} of them cross-attention; up to "
        f"{vision.max_num_tiles} tiles of {vision.image_size} pixels\n"
    )
    typer.echo(f"{'':<24}{'weights':>16}{'size':>12}{'bits':>8}")
    for part in (*parts, _whole(parts)):
        typer.echo(
            f"{part.name:<24}{part.weights:>16,}{format_bytes(part.nbytes):>12}{part.bits_per_weight:>8.2f}"
        )
    if config.quantization is not None:
        typer.echo(f"\nquantized: {_described(config.quantization)}")


def _described(quantization: QuantizationMap) -> str:
    default, others = quantization.default, len(quantization.overrides)
    line = f"{default.mode}, {default.bits} bits, groups of {default.group_size}"
    return f"{line}; {others} modules differently" if others else line


def _print_odd(odd: list[OddTensor]) -> None:
    typer.echo("\nodd values:" if odd else "\nno odd values")
    for each in odd:
        what = each.oddity if each.oddity == "all zero" else f"{each.count} × {each.oddity}"
        typer.echo(f"  {printable_line(each.name)}: {what}")


def _whole(parts: tuple[Part, ...]) -> Part:
    from llavacot_mlx.checkpoint.sizes import Part

    return Part("all", sum(p.weights for p in parts), sum(p.nbytes for p in parts))


def _told(
    model: str,
    config: ModelConfig,
    parts: tuple[Part, ...],
    memory: Memory,
    candidates: int,
    max_tokens: int,
    limit: int,
    odd: list[OddTensor] | None,
) -> dict[str, Any]:
    def of_part(part: Part) -> dict[str, Any]:
        return {
            "weights": part.weights,
            "bytes": part.nbytes,
            "bits_per_weight": part.bits_per_weight,
        }

    told: dict[str, Any] = {
        "model": model,
        "text_layers": config.text.num_hidden_layers,
        "cross_attention_layers": list(config.text.cross_attention_layers),
        "max_tiles": config.vision.max_num_tiles,
        "tile_pixels": config.vision.image_size,
        "parts": {part.name: of_part(part) for part in parts},
        "all": of_part(_whole(parts)),
        "quantization": None
        if config.quantization is None
        else {
            **vars(config.quantization.default),
            "modules": {m: vars(each) for m, each in config.quantization.overrides.items()},
        },
        "memory": {
            "candidates": candidates,
            "max_tokens": max_tokens,
            **{f"{name}_bytes": count for name, count in vars(memory).items()},
            "total_bytes": memory.total,
            "machine_bytes": limit,
            "machine_holds_it": memory.total <= limit,
        },
    }
    if odd is not None:
        told["odd_values"] = [vars(each) for each in odd]
    return told
