"""Export of an MLX folder to the Hugging Face layout, which transformers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llavacot_mlx.checkpoint.dtypes import named_dtype
from llavacot_mlx.convert.convert import Progress
from llavacot_mlx.convert.merge import Merging, Written, write_merged
from llavacot_mlx.convert.model_files import finish_for_hub
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint


def export(
    folder: Path,
    output: OutputFolder,
    *,
    adapter: Path | None = None,
    dtype: str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Written:
    """Writes the Hugging Face folder `output` with the same model as the MLX folder `folder`.

    Quantized weights are dequantized, and an adapter is merged into the weights. `dtype` is
    "float32", "float16" or "bfloat16", or None to keep each weight's own; dequantized weights then
    get the type of those that were never quantized. Without quantization, adapter and dtype, the
    bytes of every weight stay the same.

    Raises UserError when folder or adapter are incomplete, the adapter was trained on another base,
    a value is too large for the type, or the output cannot be written; nothing is left behind.
    """
    sources = (folder,) if adapter is None else (folder, adapter)
    output.check_replaceable(*sources)
    source = SourceCheckpoint.open(folder)
    merging = Merging(
        adapter=None if adapter is None else source.adapter(adapter),
        dequantize=True,
        dtype=None if dtype is None else named_dtype(dtype),
        for_hub=True,
    )

    def add_settings(partial: Path) -> None:
        finish_for_hub(partial, source.config)

    return write_merged(source, output, sources, merging, add_settings, progress)
