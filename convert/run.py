"""A conversion from start to end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.config import Quantization, load_config
from llavacot_mlx.convert.plan import PlannedTensor, Step, plan_steps, quantization_error
from llavacot_mlx.convert.settings import copy_settings, write_config
from llavacot_mlx.convert.shards import split_into_shards, write_index, write_shard
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.pictures import TileCutter
from llavacot_mlx.tokenizer import Tokenizer
from llavacot_mlx.weights import (
    check_tree,
    named_dtype,
    quantize_modules,
    read_tensors,
    source_tensors,
)

_MARGIN_BYTES = 64 * 2**20  # for the small files beside the weights


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    read_bytes: int
    total_bytes: int
    tensor: str
    """The tensor that was just converted."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    source_bytes: int
    weight_bytes: int
    dtypes: tuple[str, ...]
    """Types of the unquantised weights, as safetensors calls them."""


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Converted:
    """Converts the checkpoint folder `source` to the MLX folder `target`.

    `dtype` is "float32", "float16" or "bfloat16" for the weights that are not quantised, or None
    to keep each one's own. The folder appears when it is whole: until then everything is written
    to a hidden sibling, which is removed if anything goes wrong.

    Raises UserError when the source is no whole Mllama, a weight is not finite, the quantisation
    does not fit, the target exists and `force` is not set, or the disk is full.
    """
    # What is written goes where a link points to, beside the folder that it replaces.
    place = target.resolve()
    _check_replaceable(target, place, source, force)
    config = load_config(source)
    Tokenizer.load(source, config)
    TileCutter.load(source, config.vision)
    if quantization is not None:
        if config.quantization is not None:
            raise UserError(f"{source} is quantised already: start from the full-precision weights")
        if problem := quantization_error(quantization):
            raise UserError(f"this quantisation cannot be run: {problem}")

    sources = source_tensors(source)
    model = Mllama(config)
    if config.quantization is not None:
        quantize_modules(model, config.quantization, sources)
    check_tree(model, sources, source)
    wanted = None if dtype is None else named_dtype(dtype)
    steps = plan_steps(config, sources, wanted, quantization)
    size = sum(step.nbytes for step in steps)

    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target, place, size)
        partial.mkdir()
        copy_settings(source, partial)
        write_config(source, partial, config, dtype, quantization)
        shards = split_into_shards(steps)
        reporter = _Reporter(steps, progress)
        for file, shard in shards:
            targets = [planned for step in shard for planned in step.targets]
            write_shard(partial / file, targets, _arrays(shard, reporter))
        write_index(partial, shards)
        _check_replaceable(target, place, source, force)  # what came in the meantime, too
        _put_in_place(partial, place)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"the disk is full: {target} needs {size / 1e9:.1f} GB; nothing was left behind"
            ) from None
        raise UserError(f"{problem.filename or target}: {problem.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:  # the innermost first; those with the result in them stay
            with contextlib.suppress(OSError):
                folder.rmdir()
    return Converted(target, reporter.total, size, _plain_dtypes(steps))


class _Reporter:
    def __init__(self, steps: list[Step], progress: Callable[[Progress], None]) -> None:
        self.total = sum(step.source.entry.nbytes for step in steps)
        self._done = 0
        self._progress = progress

    def report(self, step: Step) -> None:
        self._done += step.source.entry.nbytes
        self._progress(Progress(self._done, self.total, step.source.name))


def _arrays(steps: list[Step], reporter: _Reporter) -> Iterator[mx.array]:
    """The arrays that the steps plan, in order, each computed when it is asked for."""
    for step in steps:
        (array,) = read_tensors([step.source]).values()
        parts = _converted(array, step)
        mx.eval(parts)
        _check_finite(array, parts, step)
        yield from parts
        reporter.report(step)


def _converted(array: mx.array, step: Step) -> list[mx.array]:
    floats = [t.dtype for t in step.targets if mx.issubdtype(t.dtype, mx.floating)]
    if floats:
        array = array.astype(floats[0])
    if step.quantization is None:
        return [array]
    chosen = step.quantization
    return list(mx.quantize(array, chosen.group_size, chosen.bits, chosen.mode))


def _check_finite(source: mx.array, parts: list[mx.array], step: Step) -> None:
    if not mx.issubdtype(source.dtype, mx.floating):
        return
    name, file = step.source.entry.name, step.source.entry.file
    if not mx.all(mx.isfinite(source)).item():
        raise UserError(f"{file}: {name} holds NaN or infinite values; this checkpoint is damaged")
    for part, planned in zip(parts, step.targets, strict=True):
        if mx.issubdtype(planned.dtype, mx.floating) and not mx.all(mx.isfinite(part)).item():
            raise UserError(f"{file}: {name} holds values too large for the type: use bfloat16")


def _check_replaceable(target: Path, place: Path, source: Path, force: bool) -> None:
    """Raises UserError if there is something at `target` that may not be replaced."""
    if not place.exists():
        return
    if not force:
        raise UserError(f"{target} exists already: choose another --mlx-path, or add --force")
    if source.resolve().is_relative_to(place):
        raise UserError(f"{target} is or holds the source: choose another --mlx-path")
    if not (place / "config.json").is_file() and not _is_empty_folder(place):
        raise UserError(
            f"{target} is no model folder, and --force replaces nothing else: choose another "
            "--mlx-path"
        )


def _is_empty_folder(place: Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


def _check_room(target: Path, place: Path, size: int) -> None:
    free = shutil.disk_usage(place.parent).free
    if free < size + _MARGIN_BYTES:
        raise UserError(
            f"not enough disk for {target}: it needs {size / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free"
        )


def _put_in_place(partial: Path, place: Path) -> None:
    """Gives the finished folder its name; an old one under it goes when the new one is there."""
    if not place.exists():
        partial.rename(place)
        return
    old = place.with_name(f".{place.name}.replaced-{os.getpid()}")
    place.rename(old)
    try:
        partial.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _plain_dtypes(steps: list[Step]) -> tuple[str, ...]:
    plain: set[PlannedTensor] = {step.targets[0] for step in steps if step.quantization is None}
    return tuple(sorted({str(planned.dtype).removeprefix("mlx.core.") for planned in plain}))
