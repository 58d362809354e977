"""A model folder with an adapter merged into its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.convert.convert import Progress
from llavacot_mlx.convert.merge import Merging, Reporter, merged, plan_merges
from llavacot_mlx.convert.model_files import copy_settings, drop_quantization, write_config
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.convert.tensor_files import write_weights
from llavacot_mlx.search.calibration import load_calibration, save_calibration


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    weight_bytes: int


def fuse(
    base: Path,
    adapter: Path,
    output: OutputFolder,
    *,
    dequantize: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Written:
    """Writes the MLX folder `output`: the model in `base` with the adapter's change in its weights.

    Layers of a quantised base that change are quantised again with their own settings, unless
    `dequantize` turns all of them back into plain weights.

    Raises UserError when base or adapter are not whole, the adapter was trained on another base,
    or the output cannot be written; then nothing is left behind.
    """
    output.check_replaceable(base, adapter)
    source = SourceCheckpoint.open(base)
    change = source.adapter(adapter)
    merges = plan_merges(source.config, source.tensors, Merging(change, dequantize))
    size = sum(merge.nbytes for merge in merges)
    reporter = Reporter(merges, progress)
    with output.replace(base, adapter, size=size) as partial:
        copy_settings(base, partial)
        if known := load_calibration(adapter):  # measured with the adapter, so it is nearer
            save_calibration(partial, {**load_calibration(base), **known})
        write_config(base, partial, source.config, None, None)
        if dequantize:
            drop_quantization(partial)
        write_weights(partial, merges, lambda some: merged(some, reporter))
    return Written(output.folder, size)
