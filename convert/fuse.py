"""A model folder with an adapter merged into its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llavacot_mlx.convert.convert import Progress
from llavacot_mlx.convert.merge import Merging, Written, write_merged
from llavacot_mlx.convert.model_files import copy_calibration, drop_quantization
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint


def fuse(
    base: Path,
    adapter: Path,
    output: OutputFolder,
    *,
    dequantize: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Written:
    """Writes the MLX folder `output`: the model in `base` with the adapter merged into its weights.

    Layers of a quantized base that the adapter changes are quantized again with their own settings,
    unless `dequantize` turns all weights into unquantized ones.

    Raises UserError when base or adapter are incomplete, the adapter was trained on another base,
    or the output cannot be written; then nothing is left behind.
    """
    output.check_replaceable(base, adapter)
    source = SourceCheckpoint.open(base)
    merging = Merging(source.adapter(adapter), dequantize)

    def add_settings(partial: Path) -> None:
        # Measured with the adapter on its base, which are the written weights where nothing was
        # rounded again. The base's own is of other weights.
        rounded = source.config.quantization is not None and not dequantize
        if not rounded:
            copy_calibration(adapter, partial)
        if dequantize:
            drop_quantization(partial)

    return write_merged(source, output, (base, adapter), merging, add_settings, progress)
