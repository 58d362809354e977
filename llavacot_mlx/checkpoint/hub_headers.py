"""Fetches the configuration and the tensor headers of a model on the hub.

This downloads a few hundred kilobytes, whatever the size of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.hub import download_error
from llavacot_mlx.checkpoint.safetensors import TensorEntry
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig


@dataclass(frozen=True)
class Headers:
    """The configuration and the tensors of a model whose weights were not downloaded."""

    config: ModelConfig
    tensors: dict[str, TensorEntry]
    """By their names in the files, which are not on this machine."""


def fetch_headers(model: str) -> Headers:
    """Fetches the headers of the model with the id `model`.

    Raises UserError when there is no such model, or no network.
    """
    from huggingface_hub import constants, get_safetensors_metadata, hf_hub_download
    from huggingface_hub.utils import logging

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{model}: not downloaded yet, and HF_HUB_OFFLINE forbids the network; "
            "unset it, or name a folder"
        )
    logging.set_verbosity_error()
    try:
        config_file = Path(hf_hub_download(model, "config.json"))
        found = get_safetensors_metadata(model)
    except Exception as error:
        raise UserError(download_error(model, error)) from error
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
    return Headers(load_config(config_file.parent), tensors)
