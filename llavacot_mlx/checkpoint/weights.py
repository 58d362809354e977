"""Loads a checkpoint folder as a model in memory."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from llavacot_mlx.checked import brief, quoted, shown
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.dtypes import FLOATS, mlx_dtype, named_dtype
from llavacot_mlx.checkpoint.safetensors import TensorEntry, list_tensors, weights_note
from llavacot_mlx.checkpoint.weight_names import (
    CLASS_EMBEDDING,
    EMBEDDING,
    HEAD,
    NORM,
    PATCH_EMBEDDING,
    POSITIONS,
    TILES,
    canonical_name,
    is_channels_first,
)
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig, QuantizationMap
from llavacot_mlx.model.kernels import kernels
from llavacot_mlx.model.mllama import Mllama

_BATCH_SHARE = 0.05
"""Fraction of the checkpoint that is read at once: enough for parallel reading, and little memory
compared with the whole."""
_MOST_PACKED = 16
"""Weights that are packed into one 32-bit word at most, in the fewest bits that MLX has."""


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a checkpoint under our name, still on disk."""

    name: str
    entry: TensorEntry
    transpose: bool
    """Whether it is a convolution in PyTorch's layout, to be transposed to MLX's."""

    @property
    def shape(self) -> tuple[int, ...]:
        if not self.transpose:
            return self.entry.shape
        out, channels, height, width = self.entry.shape
        return (out, height, width, channels)

    @property
    def dtype(self) -> mx.Dtype:
        """The stored type. Raises KeyError for a type that no supported model uses."""
        return mlx_dtype(self.entry.dtype)


def load_model(folder: Path, dtype: str = "auto") -> Mllama:
    """Loads a checkpoint folder: ours, mlx-vlm's or Hugging Face's, quantized or not.

    `dtype` is "auto", "float32", "float16" or "bfloat16". "auto" means float32 on a CPU, whose
    16-bit arithmetic is slow. On a GPU it means the weights' own type, and bfloat16 for float32.

    Peak memory is the size of the weights plus one batch of tensors. Raises UserError when
    something is wrong with the folder.
    """
    config = load_config(folder)
    tensors = source_tensors(folder)
    model = model_of(config, tensors, folder)
    target = runtime_dtype(dtype, tensors)
    for batch in _batches(list(tensors.values())):
        arrays = read_tensors(batch)
        named = []
        for tensor in batch:
            array = arrays.pop(
                tensor.name
            )  # drops the last reference to the array that a cast replaces
            if tensor.entry.dtype in FLOATS:
                array = array.astype(target)
            named.append((tensor.name, array))
        mx.eval([array for _, array in named])
        model.load_weights(named, strict=False)
    model.eval()
    return model


def model_of(config: ModelConfig, tensors: Mapping[str, SourceTensor], where: Path) -> Mllama:
    """Constructs the model for these tensors, quantized where they are, without their values.

    Raises UserError, which names `where`, when a name, a shape or a type is not the model's.
    """
    _check_sizes(config, tensors, where)
    model = Mllama(config)
    if config.quantization is not None:
        quantize_modules(model, config.quantization, tensors)
    check_tree(model, tensors, where)
    return model


def source_tensors(folder: Path) -> dict[str, SourceTensor]:
    """The tensors of a checkpoint by our names, without buffers that the config determines.

    Raises UserError when two tensors are the same weight.
    """
    return named_tensors(list_tensors(folder), folder)


def named_tensors(entries: Mapping[str, TensorEntry], where: Path) -> dict[str, SourceTensor]:
    """The tensors in `entries` by our names, as from `source_tensors`; `where` is for errors."""
    tensors: dict[str, SourceTensor] = {}
    for theirs, entry in entries.items():
        name = canonical_name(theirs)
        if name is None:
            continue
        if name in tensors:
            raise UserError(
                f"{where}: {quoted(tensors[name].entry.name)} and {quoted(theirs)} are the same"
            )
        transpose = name == PATCH_EMBEDDING and is_channels_first(theirs) and len(entry.shape) == 4
        tensors[name] = SourceTensor(name, entry, transpose)
    return tensors


def read_tensors(tensors: list[SourceTensor]) -> dict[str, mx.array]:
    """Lazy arrays by our names: the data is read when an array is evaluated."""
    files: dict[Path, dict[str, mx.array]] = {}
    arrays = {}
    for tensor in tensors:
        file = tensor.entry.file
        if file not in files:
            try:
                files[file] = mx.load(str(file))  # type: ignore[assignment]
            except RuntimeError as problem:
                raise UserError(f"{file} cannot be read: {problem}") from None
        array = files[file].pop(tensor.entry.name)
        arrays[tensor.name] = array.transpose(0, 2, 3, 1) if tensor.transpose else array
    return arrays


def quantize_modules(
    model: nn.Module, quantization: QuantizationMap, tensors: Container[str]
) -> None:
    """Replaces the modules whose stored weights are quantized (have scales) by quantized ones."""

    def settings(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        if f"{path}.scales" not in tensors or not hasattr(module, "to_quantized"):
            return False
        chosen = quantization.of(path)
        if chosen.error:
            raise UserError(f"config.json: the quantization cannot be run: {chosen.error}")
        return {"group_size": chosen.group_size, "bits": chosen.bits, "mode": chosen.mode}

    try:
        nn.quantize(model, class_predicate=settings)
    except ValueError as problem:
        raise UserError(f"config.json: the quantization cannot be run: {problem}") from None


def _check_sizes(config: ModelConfig, tensors: Mapping[str, SourceTensor], where: Path) -> None:
    """Raises UserError where config.json's sizes are not those of the weights.

    `check_tree` compares all shapes, once the model is constructed: of impossible sizes, that takes
    minutes and gigabytes. These weights decide how large the rest is. Of them, only the embedding
    of tiles may be quantized: its rows are packed.
    """
    text, vision = config.text, config.vision
    for name, shape in (
        (NORM, (text.hidden_size,)),
        (CLASS_EMBEDDING, (vision.hidden_size,)),
        (POSITIONS, (vision.tokens_per_tile, vision.hidden_size)),
        (TILES, (vision.num_aspect_ratios + 1, vision.max_num_tiles * vision.hidden_size)),
    ):
        tensor = tensors.get(name)
        if tensor is None:
            raise UserError(f"{where}: the weight {name} is missing{_why_missing(where)}")
        packed = f"{name.removesuffix('.weight')}.scales" in tensors and len(tensor.shape) == 2
        if packed and tensor.shape[0] == shape[0] and shape[-1] <= _MOST_PACKED * tensor.shape[-1]:
            continue
        if tensor.shape != shape:
            raise UserError(
                f"{where}: the weight {brief(tensor.entry.name)} in {tensor.entry.file.name} has "
                f"the shape {shown(tensor.shape)}; config.json asks for {list(shape)}"
            )


def check_tree(model: nn.Module, tensors: Mapping[str, SourceTensor], folder: Path) -> None:
    """Raises UserError at the first name, shape or type that is not the model's."""
    expected = dict(tree_flatten(model.parameters()))
    for name in expected:
        if name not in tensors:
            raise UserError(f"{folder}: the weight {name} is missing{_why_missing(folder)}")
    for name, tensor in tensors.items():
        weight = f"the weight {brief(tensor.entry.name)} in {tensor.entry.file.name}"
        if name not in expected:
            raise UserError(
                f"{folder}: {weight} belongs to no part of an Mllama with this config.json"
            )
        if name in (EMBEDDING, HEAD) and tensor.shape[:1] != tuple(expected[name].shape[:1]):
            rows = {each: tensors[each].shape[0] for each in (EMBEDDING, HEAD) if each in tensors}
            raise UserError(
                f"{folder}: the vocabulary was resized: the embedding has {rows.get(EMBEDDING)} "
                f"rows, the head {rows.get(HEAD)}; the config says "
                f"{expected[HEAD].shape[0]}, for which they have {expected[EMBEDDING].shape[0]} "
                f"and {expected[HEAD].shape[0]}; start from a checkpoint whose vocabulary was not "
                "resized"
            )
        if tensor.shape != tuple(expected[name].shape):
            raise UserError(
                f"{folder}: {weight} has the shape {shown(tensor.shape)}; config.json asks for "
                f"{list(expected[name].shape)}"
            )
        readable = _readable_types(expected[name].dtype)
        if tensor.entry.dtype not in readable:
            raise UserError(
                f"{folder}: {weight} is stored as {tensor.entry.dtype}; "
                f"{', '.join(sorted(readable))} can be read"
            )


def _why_missing(folder: Path) -> str:
    note = weights_note(folder)
    return f" ({note})" if note else ""


def _readable_types(wanted: mx.Dtype) -> frozenset[str]:
    """The types that a file may store a weight of type `wanted` in."""
    if mx.issubdtype(wanted, mx.floating):
        return FLOATS
    return frozenset(
        {"U32"} if wanted == mx.uint32 else {"U8"}
    )  # packed weights or scales of a quantized module


def runtime_dtype(dtype: str, tensors: Mapping[str, SourceTensor]) -> mx.Dtype:
    """The type that floating-point weights and activations have in memory."""
    if dtype != "auto":
        return named_dtype(dtype)
    if kernels().float32_weights:
        return mx.float32
    stored = {tensor.entry.dtype for tensor in tensors.values()}
    return mx.float16 if "F16" in stored else mx.bfloat16


def _batches(tensors: list[SourceTensor]) -> Iterator[list[SourceTensor]]:
    """Yields batches, the largest tensors first: a cast copies them while little is in memory."""
    limit = _BATCH_SHARE * sum(tensor.entry.nbytes for tensor in tensors)
    batch: list[SourceTensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: -tensor.entry.nbytes):
        if batch and size + tensor.entry.nbytes > limit:
            yield batch
            batch, size = [], 0
        batch.append(tensor)
        size += tensor.entry.nbytes
    if batch:
        yield batch
