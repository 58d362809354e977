"""A checkpoint folder that was looked through, and found whole, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.adapter_config import WEIGHTS_NAME
from llavacot_mlx.adapters import Adapter, check_fits, read_adapter
from llavacot_mlx.config_json import load_config
from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.pictures import TileCutter
from llavacot_mlx.tokenizer import Tokenizer
from llavacot_mlx.weights import SourceTensor, model_of, source_tensors


@dataclass(frozen=True)
class Source:
    """A whole checkpoint, its weights still on disk."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, SourceTensor]
    """By our names."""
    model: Mllama
    """Constructed, without the weights."""

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Raises UserError when the folder is no whole Mllama."""
        config = load_config(folder)
        Tokenizer.load(folder, config)
        TileCutter.load(folder, config.vision)
        tensors = source_tensors(folder)
        return cls(folder, config, tensors, model_of(config, tensors, folder))

    def adapter(self, folder: Path) -> Adapter:
        """An adapter for this checkpoint. Raises UserError when it is none."""
        adapter = read_adapter(folder)
        adapter.config.check_base(folder, self.folder)
        check_fits(adapter, self.model, folder / WEIGHTS_NAME)
        return adapter
