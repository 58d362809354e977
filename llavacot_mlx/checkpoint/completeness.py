"""Whether a model has all files that answering needs, told in one line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from llavacot_mlx.checked import read_json
from llavacot_mlx.checkpoint.folder_files import files_in
from llavacot_mlx.errors import MissingFileError

_NEEDED = (("tokenizer.json",), ("preprocessor_config.json", "processor_config.json"))
"""Beside config.json and the weights; one of each."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def check_complete(folder: Path) -> None:
    """Raises UserError that names all missing files of a model's folder, and where they are.

    A folder without config.json is no model's, which whoever reads that file says.
    """
    config = folder / "config.json"
    names = [file.name for file in files_in(folder)]
    if config.name in names and _missing(names):
        check_names(names, folder, read_json(config))


def check_names(names: Collection[str], where: object, config: Any) -> None:
    """Like `check_complete` for a list of files; `config` is the content of config.json."""
    missing = _missing(names)
    if not missing:
        return
    if len(missing) == 1:
        raise MissingFileError(
            f"{Path(str(where)) / missing[0]} is missing; take it from {_base(config)}"
        )
    listed = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
    raise MissingFileError(
        f"{where}: {listed} are missing; take what is missing from {_base(config)}"
    )


def _missing(names: Collection[str]) -> list[str]:
    """The needed files that are not there; weights count only where another file is missing too."""
    missing = [options[0] for options in _NEEDED if not set(options) & set(names)]
    if missing and not any(name.endswith(_WEIGHTS) for name in names):
        missing.append("*.safetensors")
    return missing


def _base(config: Any) -> str:
    """The model that a configuration was fine-tuned from, as far as it says."""
    sections = [config, config.get("text_config")] if isinstance(config, dict) else []
    for section in sections:
        name = section.get("_name_or_path") if isinstance(section, dict) else None
        if isinstance(name, str) and name:
            return name
    return "the model that this one was fine-tuned from"
