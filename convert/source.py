"""A source checkpoint, checked in full before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.checkpoint.adapter_config import WEIGHTS_NAME
from llavacot_mlx.checkpoint.adapters import Adapter, check_fits, read_adapter
from llavacot_mlx.checkpoint.completeness import check_complete
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import SourceTensor, model_of, source_tensors
from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.tokenizer import Tokenizer


@dataclass(frozen=True)
class SourceCheckpoint:
    """A complete checkpoint whose weights are still on disk."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, SourceTensor]
    """By our names."""
    model: Mllama
    """Constructed, without the weights."""

    @classmethod
    def open(cls, folder: Path) -> SourceCheckpoint:
        """Raises UserError when the folder is not a complete Mllama."""
        check_complete(folder)
        config = load_config(folder)
        Tokenizer.load(folder, config)
        ImageProcessor.load(folder, config.vision)
        tensors = source_tensors(folder)
        return cls(folder, config, tensors, model_of(config, tensors, folder))

    def adapter(self, folder: Path) -> Adapter:
        """Reads an adapter for this checkpoint. Raises UserError when it does not fit."""
        adapter = read_adapter(folder)
        adapter.config.check_base(folder, self.folder)
        check_fits(adapter, self.model, folder / WEIGHTS_NAME)
        return adapter
