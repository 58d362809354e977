"""Fetches the configuration and the tensor headers of a model on the hub.

This downloads a few hundred kilobytes, whatever the size of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.checked import read_json
from llavacot_mlx.checkpoint.config_json import parse_config
from llavacot_mlx.checkpoint.hub import check_online, download_error
from llavacot_mlx.checkpoint.model_name import ModelName
from llavacot_mlx.checkpoint.safetensors import TensorEntry
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig


@dataclass(frozen=True)
class Headers:
    """The configuration and the tensors of a model whose weights were not downloaded."""

    config: ModelConfig
    tensors: dict[str, TensorEntry]
    """By their names in the files, which are not on this machine."""


def fetch_headers(name: ModelName) -> Headers:
    """Fetches the headers of a model on the hub, its config.json first.

    Raises UserError when there is no such model, it cannot be run, or there is no network.
    """
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.utils import logging

    check_online(name)
    assert name.id is not None
    logging.set_verbosity_error()
    try:
        config_file = Path(hf_hub_download(name.id, "config.json", revision=name.revision))
        config = parse_config(read_json(config_file), Path(str(name)) / "config.json")
        found = get_safetensors_metadata(name.id, revision=name.revision)
    except UserError:
        raise
    except Exception as error:
        raise UserError(download_error(name, error)) from error
    tensors = {
        name: TensorEntry(
            name,
            Path(file),
            info.dtype,
            tuple(info.shape),
            info.data_offsets[1] - info.data_offsets[0],
            info.data_offsets[0],
        )
        for file, metadata in found.files_metadata.items()
        for name, info in metadata.tensors.items()
    }
    return Headers(config, tensors)
