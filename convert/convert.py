"""A conversion in three phases: plan, write, finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from llavacot_mlx.checkpoint.dtypes import named_dtype
from llavacot_mlx.convert import blocks
from llavacot_mlx.convert.blocks import BlockReader, BlockSource, ConvertedBlock
from llavacot_mlx.convert.card import Facts, write_card
from llavacot_mlx.convert.journal import NAME as JOURNAL_NAME
from llavacot_mlx.convert.journal import Identity, Journal, Kept
from llavacot_mlx.convert.model_files import copy_calibration, copy_settings, write_config
from llavacot_mlx.convert.output_folder import write_error
from llavacot_mlx.convert.plan import (
    TensorStep,
    bits_per_weight,
    plan_steps,
    quantization_map,
)
from llavacot_mlx.convert.recipes import Recipe, uniform
from llavacot_mlx.convert.resumable_output import ResumableOutput
from llavacot_mlx.convert.shards import Shard, ShardFile, split_into_shards, write_index
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.convert.verify import compare_with_source
from llavacot_mlx.errors import LostConnectionError, UserError
from llavacot_mlx.generate.gpu_errors import gpu_error
from llavacot_mlx.model.config import Quantization

_CHECKPOINT_BYTES = 256 * 10**6
"""Bytes between two entries of the journal, which is the most that a crash can cost."""


@dataclass(frozen=True)
class Estimate:
    """The sizes of a conversion, known before anything is written."""

    source_bytes: int
    weight_bytes: int
    bits_per_weight: float
    free_bytes: int
    """Free bytes on the disk of the output."""


@dataclass(frozen=True)
class Progress:
    """The progress of a conversion."""

    read_bytes: int
    total_bytes: int
    tensor: str
    """The tensor that was converted last, at least in part."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    source_bytes: int
    weight_bytes: int
    dtypes: tuple[str, ...]
    """Types of the unquantized weights, such as "bfloat16"."""


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write, decided before anything is written."""

    source: SourceCheckpoint
    dtype: str | None
    recipe: str | None
    """The name of the quantization; None without one."""
    steps: tuple[TensorStep, ...]
    shards: tuple[Shard, ...]
    identity: Identity

    @property
    def source_bytes(self) -> int:
        return sum(step.source.entry.nbytes for step in self.steps)

    @property
    def weight_bytes(self) -> int:
        return sum(step.nbytes for step in self.steps)

    @property
    def plain_dtypes(self) -> tuple[str, ...]:
        """Types of the unquantized weights, such as "bfloat16"."""
        plain = {step.targets[0].dtype for step in self.steps if step.quantization is None}
        return tuple(sorted(str(dtype).removeprefix("mlx.core.") for dtype in plain))


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    quantization: Quantization | Recipe | None = None,
    force: bool = False,
    verify: bool = False,
    name: str | None = None,
    block_source: BlockSource | None = None,
    estimated: Callable[[Estimate], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Converts the checkpoint folder `source` to the MLX folder `target`.

    `dtype` is "float32", "float16" or "bfloat16" for the weights that are not quantized, or None
    to keep each one's own. A `Quantization` is for the whole language model. With `verify`, what
    is on the disk is compared with the source before it takes the target's name. `name` is the
    source's id on a hub, for the model card. The weights are read by `block_source`, if they
    do not lie in the source's folder.

    The folder appears when it is complete: until then everything is written to a hidden sibling. An
    error removes the sibling; an interrupted or killed process leaves it, and the same conversion
    resumes with whatever of it is intact. Memory does not depend on the size of the checkpoint.

    Raises UserError when the source is not a complete Mllama, a weight is not finite, the
    quantization does not fit, the target exists and `force` is not set, or the disk is full.
    """
    block_source = block_source or BlockReader()
    output = ResumableOutput(target, source, force)
    plan = plan_conversion(source, dtype, quantization)
    reporter = _ConversionReporter(plan, progress)
    try:
        bits = bits_per_weight(plan.steps)
        estimated(Estimate(plan.source_bytes, plan.weight_bytes, bits, output.free_bytes()))
        with output:
            journal = Journal(output.partial)
            with _resumable(output, journal, notice):
                digests = _write(plan, output, journal, reporter, notice, block_source)
                _finish(plan, output, journal, digests, verify=verify, name=name)
    except OSError as problem:
        raise write_error(problem, target, plan.weight_bytes) from None
    return Converted(target, plan.source_bytes, plan.weight_bytes, plan.plain_dtypes)


def plan_conversion(
    source: Path, dtype: str | None, quantization: Quantization | Recipe | None
) -> ConversionPlan:
    """Phase 1: reads the source's headers and decides what becomes of each tensor.

    Raises UserError when the source is not a complete Mllama, or the quantization does not fit.
    """
    opened = SourceCheckpoint.open(source)
    if quantization is not None and opened.config.quantization is not None:
        raise UserError(f"{source} is quantized already: start from the full-precision weights")
    if isinstance(quantization, Quantization) and quantization.error:
        raise UserError(f"this quantization cannot be run: {quantization.error}")
    wanted = None if dtype is None else named_dtype(dtype)
    steps = plan_steps(opened.config, opened.tensors, wanted, quantization)
    shards = split_into_shards(steps)
    return ConversionPlan(
        source=opened,
        dtype=dtype,
        recipe=_name_of(quantization),
        steps=tuple(steps),
        shards=tuple(shards),
        identity=Identity.of(steps, shards),
    )


def _write(
    plan: ConversionPlan,
    output: ResumableOutput,
    journal: Journal,
    reporter: _ConversionReporter,
    notice: Callable[[str], None],
    block_source: BlockSource,
) -> dict[str, str]:
    """Phase 2: fills the hidden folder, from where an earlier run stopped.

    Returns the SHA-256 of each weight file.
    """
    kept = _kept(journal, plan.identity, plan.shards, notice)
    output.keep_only({JOURNAL_NAME, *kept})
    output.check_free_space(plan.weight_bytes - journal.saved)
    source = plan.source
    copy_settings(source.folder, output.partial)
    if plan.recipe is None and plan.dtype is None:  # the same weights
        copy_calibration(source.folder, output.partial)
    quantization = quantization_map(plan.steps)
    write_config(source.folder, output.partial, source.config, plan.dtype, quantization)
    digests = _write_weights(output.partial, plan.shards, kept, journal, reporter, block_source)
    write_index(output.partial, plan.shards)
    return digests


def _finish(
    plan: ConversionPlan,
    output: ResumableOutput,
    journal: Journal,
    digests: dict[str, str],
    *,
    verify: bool,
    name: str | None,
) -> None:
    """Phase 3: compares with the source if asked to, writes the card, gives the folder its name."""
    source = plan.source.folder
    facts = Facts(
        source=name or source.resolve().name,
        is_hub_id=name is not None,
        identity=plan.identity,
        recipe=plan.recipe,
        dtypes=plan.plain_dtypes,
        weight_bytes=plan.weight_bytes,
        bits_per_weight=bits_per_weight(plan.steps),
        files=digests,
        verified=compare_with_source(output.partial, plan.steps) if verify else None,
    )
    write_card(source, output.partial, facts)
    if not plan.identity.source_is_unchanged(source):
        raise UserError(f"{source} changed while it was converted; run this again")
    output.check_replaceable()  # something may have appeared in the meantime
    output.finish(journal.file)


@contextmanager
def _resumable(
    output: ResumableOutput, journal: Journal, notice: Callable[[str], None]
) -> Iterator[None]:
    """Removes the hidden folder after an error; keeps it for a resumption after an interrupt.

    An error of the GPU or of the network counts as an interrupt: the same conversion may succeed
    the next time.
    """
    try:
        yield
    except (
        KeyboardInterrupt,
        SystemExit,
        RuntimeError,
        MemoryError,
        LostConnectionError,
    ) as stop:
        if (isinstance(stop, RuntimeError) and gpu_error(stop) is None) or not journal.saved:
            output.clear()
        else:
            notice(f"stopped; rerun the same command to resume from {output.path}")
        raise
    except BaseException:
        output.clear()
        raise


def _kept(
    written: Journal, identity: Identity, shards: Sequence[Shard], notice: Callable[[str], None]
) -> dict[str, Kept]:
    """Finds what an earlier run left intact; begins a new journal where nothing is."""
    earlier = written.found()
    if earlier == identity:
        kept = {file: each for file, each in written.kept(shards).items() if each.count}
        if kept:
            notice(f"resuming where it stopped: {written.saved / 1e9:.1f} GB are there already")
        return kept
    if earlier is not None:
        changed = (
            "the source has changed"
            if earlier.source != identity.source
            else ("what an interrupted conversion with other settings left is replaced")
        )
        notice(f"{changed}: starting over")
    written.begin(identity)
    return {}


def _write_weights(
    folder: Path,
    shards: Sequence[Shard],
    kept: dict[str, Kept],
    written: Journal,
    reporter: _ConversionReporter,
    block_source: BlockSource,
) -> dict[str, str]:
    """Fills the weight files that are incomplete, and journals the progress.

    Returns the SHA-256 of each file.
    """
    digests = {}
    starts = {shard.file: kept.get(shard.file, Kept()) for shard in shards}
    done = {shard.file: shard.steps_within(starts[shard.file].count) for shard in shards}
    for shard in shards:
        for step in shard.steps[: done[shard.file]]:
            reporter.skip(step)
    waiting = chain.from_iterable(shard.steps[done[shard.file] :] for shard in shards)
    converted = blocks.converted(waiting, block_source)
    with ThreadPoolExecutor(1) as behind:
        for shard in shards:
            start = starts[shard.file]
            if start.count == shard.nbytes:
                digests[shard.file] = start.digest.hexdigest()
                continue
            with ShardFile(folder, shard, start.count, start.digest) as file:
                noted, notes = file.position, []
                for step in shard.steps[done[shard.file] :]:
                    file.write_step(_blocks_of(step, converted, reporter))
                    if file.position - noted >= _CHECKPOINT_BYTES:
                        notes.append(_note(behind, written, shard, file, noted))
                        noted = file.position
                notes.append(_note(behind, written, shard, file, noted))
                for note in notes:
                    note.result()
                digests[shard.file] = file.sha256()
    return digests


def _note(
    behind: ThreadPoolExecutor, written: Journal, shard: Shard, file: ShardFile, noted: int
) -> Future[None]:
    """Journals the progress of a file once it is on the disk, in the background."""
    return behind.submit(
        written.add, shard, file.position, file.sha256(), file.position - noted, file.flush()
    )


def _blocks_of(
    step: TensorStep, converted: Iterator[ConvertedBlock], reporter: _ConversionReporter
) -> Iterator[ConvertedBlock]:
    for each in converted:
        assert each.block.step is step
        yield each
        reporter.report(step, each.block.stop - each.block.start)
        if each.block.last:
            return


class _ConversionReporter:
    """Counts the bytes of the source that were read, and tells the caller."""

    def __init__(self, plan: ConversionPlan, progress: Callable[[Progress], None]) -> None:
        self._total = plan.source_bytes
        self._done = 0
        self._progress = progress

    def skip(self, step: TensorStep) -> None:
        """Counts a step that an earlier run did."""
        self._done += step.source.entry.nbytes

    def report(self, step: TensorStep, nbytes: int) -> None:
        self._done += nbytes
        self._progress(Progress(self._done, self._total, step.source.name))


def _name_of(quantization: Quantization | Recipe | None) -> str | None:
    recipe = uniform(quantization) if isinstance(quantization, Quantization) else quantization
    return None if recipe is None else recipe.name
