"""The model card of a converted folder: its source, the recipe and the versions used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llavacot_mlx import __version__
from llavacot_mlx.convert.journal import Identity
from llavacot_mlx.convert.verify import Verified

NAME = "README.md"
_SOURCE_NAME = "README.source.md"
# Kept from the source's card: a conversion does not change the terms of use.
_INHERITED = ("license", "license_name", "license_link", "language", "extra_gated_prompt")


@dataclass(frozen=True)
class Facts:
    """The contents of a card."""

    source: str
    """A hub id, or the name of a folder."""
    is_hub_id: bool
    identity: Identity
    recipe: str | None
    dtypes: tuple[str, ...]
    weight_bytes: int
    bits_per_weight: float
    files: dict[str, str]
    """SHA-256 of each weight file, by its name."""
    verified: Verified | None


def write_card(source: Path, folder: Path, facts: Facts) -> None:
    """Writes the card, and keeps a copy of the source's own card under another name."""
    theirs = source / NAME
    inherited = _front_matter(theirs)
    if theirs.is_file() and not (folder / _SOURCE_NAME).exists():
        (folder / _SOURCE_NAME).write_bytes(theirs.read_bytes())
    (folder / NAME).write_text(_card(facts, inherited), encoding="utf-8")


def source_digest(identity: Identity) -> str:
    """SHA-256 of the names, sizes and headers of a source's files, instead of its 40 GB."""
    lines = (f"{name} {size} {sha256}\n" for name, (size, _, sha256) in identity.source.items())
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _card(facts: Facts, inherited: dict[str, Any]) -> str:
    import yaml

    matter: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "image-text-to-text"}
    matter["tags"] = ["mlx", "mllama"]
    if facts.is_hub_id:
        matter["base_model"] = facts.source
    matter |= inherited
    rows = {
        "source": facts.source,
        "its files (SHA-256 of names, sizes and headers)": source_digest(facts.identity),
        "recipe": facts.recipe or "not quantized",
        "unquantized weights": ", ".join(facts.dtypes),
        "size": f"{facts.weight_bytes:,} bytes, {facts.bits_per_weight:.2f} bits per weight",
        "made with": f"llavacot-mlx {__version__}, MLX {version('mlx')}",
        "compared with the source": _compared(facts.verified),
        **{f"{file} (SHA-256)": digest for file, digest in facts.files.items()},
    }
    table = "\n".join(f"| {what} | {said} |" for what, said in rows.items())
    return (
        f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {facts.source.rpartition('/')[2]} for MLX\n\n"
        "Converted by `llavacot convert`. In this folder:\n\n"
        '    llavacot ask photo.jpg "What is unusual here?" --model .\n\n'
        f"| | |\n|---|---|\n{table}\n"
    )


def _compared(verified: Verified | None) -> str:
    if verified is None:
        return "no"
    return f"every name, shape and type; {verified.values:,} values in {verified.tensors} tensors"


def _front_matter(file: Path) -> dict[str, Any]:
    """The inherited keys of a card's YAML front matter; empty without a card or front matter."""
    import yaml

    try:
        begin, head, _ = file.read_text(encoding="utf-8-sig").split("---\n", 2)
        values = yaml.safe_load(head)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if begin.strip() or not isinstance(values, dict):
        return {}
    return {key: values[key] for key in _INHERITED if key in values}
