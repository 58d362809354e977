"""From an MLX folder to the layout of hubs, which transformers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llavacot_mlx.checkpoint.dtypes import named_dtype
from llavacot_mlx.convert.convert import Progress
from llavacot_mlx.convert.fuse import Written
from llavacot_mlx.convert.merge import Merging, Reporter, merged, plan_merges
from llavacot_mlx.convert.model_files import copy_settings, finish_for_hub, write_config
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.convert.tensor_files import write_weights


def export(
    folder: Path,
    output: OutputFolder,
    *,
    adapter: Path | None = None,
    dtype: str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Written:
    """Writes the Hugging Face folder `output` with the same model as the MLX folder `folder`.

    What is quantised is dequantised, and an adapter is merged on the way. `dtype` is "float32",
    "float16" or "bfloat16", or None to keep each weight's own; dequantised weights then have the
    type of those that were never quantised. Without a quantisation, an adapter or a dtype, every
    weight is the same bytes as in the folder.

    Raises UserError when folder or adapter are not whole, the adapter was trained on another base,
    a value is too large for the type, or the output cannot be written; nothing is left behind.
    """
    sources = (folder,) if adapter is None else (folder, adapter)
    output.check_replaceable(*sources)
    source = SourceCheckpoint.open(folder)
    wanted = Merging(
        adapter=None if adapter is None else source.adapter(adapter),
        dequantize=True,
        dtype=None if dtype is None else named_dtype(dtype),
        for_hub=True,
    )
    merges = plan_merges(source.config, source.tensors, wanted)
    size = sum(merge.nbytes for merge in merges)
    reporter = Reporter(merges, progress)
    with output.replace(*sources, size=size) as partial:
        copy_settings(folder, partial)
        write_config(folder, partial, source.config, dtype, None)
        finish_for_hub(partial, source.config)
        write_weights(partial, merges, lambda some: merged(some, reporter), made_for="pt")
    return Written(output.folder, size)
