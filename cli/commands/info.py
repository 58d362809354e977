"""`llavacot info`: shows a model's size and the memory that it needs, without loading it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavacot_mlx.checkpoint.model_name import ModelName, parse_model_name
from llavacot_mlx.cli.exit_codes import handle_errors
from llavacot_mlx.cli.options import (
    DebugOption,
    JsonOption,
    MaxTokensOption,
    RevisionOption,
    check_positive,
)
from llavacot_mlx.cli.printable import printable_line, short_line
from llavacot_mlx.cli.units import format_bytes
from llavacot_mlx.errors import UserError

if TYPE_CHECKING:
    from llavacot_mlx.checkpoint.finite import OddTensor
    from llavacot_mlx.checkpoint.sizes import Memory, Part
    from llavacot_mlx.checkpoint.weights import SourceTensor
    from llavacot_mlx.model.config import ModelConfig, QuantizationMap

HELP = """\
Show a model's size and the memory that an answer needs. It reads only the \
configuration and the headers of the weight files; for a model on the hub, it downloads only these.

\b
Examples:
  llavacot info ./llava-cot-4bit
  llavacot info Xkev/Llama-3.2V-11B-cot
  llavacot info ./llava-cot-4bit --candidates 8 --values
"""

INTRODUCTION = """\
llavacot info shows a model's size, and whether it fits in this machine's
memory.

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
    ] = 1,
    max_tokens: MaxTokensOption = 2048,
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            help="Read all weights, and list tensors with NaN, infinite or only zero values.",
        ),
    ] = False,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug):
        check_positive("--candidates", candidates)
        check_positive("--max-tokens", max_tokens)
        config, tensors, is_downloaded = _read_headers(parse_model_name(model, revision))
        if values and not is_downloaded:
            raise UserError(f"--values reads the weight files, and {model} is not downloaded")

        from llavacot_mlx.checkpoint.finite import odd_tensors

        report = _Report.of(model, config, tensors, candidates, max_tokens)
        odd = list(odd_tensors(tensors.values())) if values else None
        if as_json:
            shown = report.to_dict()
            if odd is not None:
                shown["odd_values"] = [vars(each) for each in odd]
            typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))
            return
        _print_parts(report)
        _print_memory(report)
        if odd is not None:
            _print_odd(odd)


@dataclass(frozen=True)
class _Report:
    """What a model consists of, and the memory that its answers need."""

    model: str
    config: ModelConfig
    parts: tuple[Part, ...]
    candidates: int
    max_tokens: int
    memory: Memory
    weight_type: str
    """The type that unquantized weights have in memory here, such as `float32`."""
    machine_bytes: int
    machine_memory: str
    """The kind of memory that `machine_bytes` counts, such as `recommended working set`."""

    @classmethod
    def of(
        cls,
        model: str,
        config: ModelConfig,
        tensors: dict[str, SourceTensor],
        candidates: int,
        max_tokens: int,
    ) -> _Report:
        from llavacot_mlx.checkpoint.sizes import estimate_memory, parts_of
        from llavacot_mlx.checkpoint.weights import runtime_dtype
        from llavacot_mlx.generate.device import available_memory

        memory = estimate_memory(
            config, tensors, config.vision.max_num_tiles, candidates, max_tokens
        )
        return cls(
            model,
            config,
            parts_of(config, tensors),
            candidates,
            max_tokens,
            memory,
            str(runtime_dtype("auto", tensors)).removeprefix("mlx.core."),
            *available_memory(),
        )

    @property
    def whole(self) -> Part:
        """All parts as one."""
        from llavacot_mlx.checkpoint.sizes import Part

        return Part("all", sum(p.weights for p in self.parts), sum(p.nbytes for p in self.parts))

    @property
    def fits(self) -> bool:
        """Whether this machine has the memory."""
        return self.memory.total <= self.machine_bytes

    def to_dict(self) -> dict[str, Any]:
        """The object of --json."""
        config, quantization = self.config, self.config.quantization
        return {
            "model": self.model,
            "text_layers": config.text.num_hidden_layers,
            "cross_attention_layers": list(config.text.cross_attention_layers),
            "max_tiles": config.vision.max_num_tiles,
            "tile_pixels": config.vision.image_size,
            "parts": {part.name: _part_to_dict(part) for part in self.parts},
            "all": _part_to_dict(self.whole),
            "quantization": None if quantization is None else _quantization_to_dict(quantization),
            "memory": {
                "candidates": self.candidates,
                "max_tokens": self.max_tokens,
                **{f"{name}_bytes": count for name, count in vars(self.memory).items()},
                "total_bytes": self.memory.total,
                "machine_bytes": self.machine_bytes,
                "machine_holds_it": self.fits,
            },
        }


def _part_to_dict(part: Part) -> dict[str, Any]:
    return {
        "weights": part.weights,
        "bytes": part.nbytes,
        "bits_per_weight": part.bits_per_weight,
    }


def _quantization_to_dict(quantization: QuantizationMap) -> dict[str, Any]:
    modules = {name: vars(each) for name, each in quantization.overrides.items()}
    return {**vars(quantization.default), "modules": modules}


def _read_headers(name: ModelName) -> tuple[ModelConfig, dict[str, SourceTensor], bool]:
    """A model's configuration and tensors, and whether its files are on this machine."""
    from llavacot_mlx.checkpoint import hub
    from llavacot_mlx.checkpoint.config_json import load_config
    from llavacot_mlx.checkpoint.safetensors import weights_note
    from llavacot_mlx.checkpoint.weights import model_of, named_tensors, source_tensors

    here = name.folder or hub.downloaded(name)
    if here is not None:
        if note := weights_note(here):
            print(f"note: {short_line(note)}", file=sys.stderr)
        config, tensors = load_config(here), source_tensors(here)
    else:
        from llavacot_mlx.checkpoint.hub_headers import fetch_headers

        headers = fetch_headers(name)
        config, tensors = headers.config, named_tensors(headers.tensors, Path(str(name)))
    model_of(config, tensors, here or Path(str(name)))
    return config, tensors, here is not None


def _print_parts(report: _Report) -> None:
    config = report.config
    typer.echo(
        f"{printable_line(report.model)}: {config.text.num_hidden_layers} text layers, "
        f"{len(config.text.cross_attention_layers)} of them cross-attention; up to "
        f"{config.vision.max_num_tiles} tiles of {config.vision.image_size} pixels\n"
    )
    typer.echo(f"{'':<24}{'weights':>16}{'size':>12}{'bits':>8}")
    for part in (*report.parts, report.whole):
        size = format_bytes(part.nbytes)
        typer.echo(f"{part.name:<24}{part.weights:>16,}{size:>12}{part.bits_per_weight:>8.2f}")
    if config.quantization is not None:
        typer.echo(f"\nquantized: {_quantization_line(config.quantization)}")


def _quantization_line(quantization: QuantizationMap) -> str:
    default, others = quantization.default, len(quantization.overrides)
    line = f"{default.mode}, {default.bits} bits, groups of {default.group_size}"
    return f"{line}; {others} modules differently" if others else line


def _print_memory(report: _Report) -> None:
    memory = report.memory
    answers = "1 answer" if report.candidates == 1 else f"{report.candidates} candidates"
    differs = memory.weights != report.whole.nbytes
    in_memory = f" (in memory as {report.weight_type})" if differs else ""
    typer.echo(
        f"\nan image of {report.config.vision.max_num_tiles} tiles, {answers} "
        f"of {report.max_tokens} tokens:\n"
        f"  weights {format_bytes(memory.weights)}{in_memory} "
        f"+ image {format_bytes(memory.picture)} + text {format_bytes(memory.text)} "
        f"+ encoding about {format_bytes(memory.working)} "
        f"= {format_bytes(memory.total)}"
    )
    verdict = "holds it" if report.fits else "does not hold it"
    machine = f"{format_bytes(report.machine_bytes)} {report.machine_memory}"
    typer.echo(f"  this machine ({machine}) {verdict}")


def _print_odd(odd: list[OddTensor]) -> None:
    typer.echo("\nodd values:" if odd else "\nno odd values")
    for each in odd:
        what = each.oddity if each.oddity == "all zero" else f"{each.count} × {each.oddity}"
        typer.echo(f"  {printable_line(each.name)}: {what}")
