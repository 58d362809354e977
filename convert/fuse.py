"""A model folder with an adapter merged into its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llavacot_mlx.convert.convert import Progress
from llavacot_mlx.convert.merge import Merging, Written, write_merged
from llavacot_mlx.convert.model_files import drop_quantization
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.search.calibration import load_calibration, save_calibration


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
        if known := load_calibration(adapter):  # measured with the adapter, so it is nearer
            save_calibration(partial, {**load_calibration(base), **known})
        if dequantize:
            drop_quantization(partial)

    return write_merged(source, output, (base, adapter), merging, add_settings, progress)
