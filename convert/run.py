"""A conversion from start to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from llavacot_mlx.convert import blocks, journal
from llavacot_mlx.convert.blocks import ConvertedBlock
from llavacot_mlx.convert.card import Facts, write_card
from llavacot_mlx.convert.journal import Identity, Journal, Kept
from llavacot_mlx.convert.place import Place
from llavacot_mlx.convert.plan import (
    Step,
    bits_per_weight,
    plan_steps,
    quantization_error,
    quantization_map,
)
from llavacot_mlx.convert.recipes import Recipe, uniform
from llavacot_mlx.convert.settings import copy_settings, write_config
from llavacot_mlx.convert.shards import Shard, ShardFile, split_into_shards, write_index
from llavacot_mlx.convert.source import Source
from llavacot_mlx.convert.target import write_error
from llavacot_mlx.convert.verify import verify as compare
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.weights import named_dtype

_CHECKPOINT_BYTES = 256 * 10**6
"""Written between two notes of the journal: so much is done again after a crash."""


@dataclass(frozen=True)
class Estimate:
    """What a conversion will take, known before anything is written."""

    source_bytes: int
    weight_bytes: int
    bits_per_weight: float
    free_bytes: int
    """On the target's disk."""


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    read_bytes: int
    total_bytes: int
    tensor: str
    """The tensor that was just converted, or a part of it."""


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
    quantization: Quantization | Recipe | None = None,
    force: bool = False,
    verify: bool = False,
    name: str | None = None,
    estimated: Callable[[Estimate], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Converts the checkpoint folder `source` to the MLX folder `target`.

    `dtype` is "float32", "float16" or "bfloat16" for the weights that are not quantised, or None
    to keep each one's own. A `Quantization` is for the whole language model. With `verify`, what
    is on the disk is compared with the source before it takes the target's name. `name` is the
    source's id on a hub, for the model card.

    The folder appears when it is whole: until then everything is written to a hidden sibling. If
    anything goes wrong, that is removed; only where the process is interrupted or killed it stays,
    and the same conversion goes on with what of it is intact. Memory does not depend on the size
    of the checkpoint.

    Raises UserError when the source is no whole Mllama, a weight is not finite, the quantisation
    does not fit, the target exists and `force` is not set, or the disk is full.
    """
    place = Place(target, source, force)
    opened = Source.open(source)
    config = opened.config
    if quantization is not None and config.quantization is not None:
        raise UserError(f"{source} is quantised already: start from the full-precision weights")
    if isinstance(quantization, Quantization) and (problem := quantization_error(quantization)):
        raise UserError(f"this quantisation cannot be run: {problem}")

    wanted = None if dtype is None else named_dtype(dtype)
    steps = plan_steps(config, opened.tensors, wanted, quantization)
    size = sum(step.nbytes for step in steps)
    shards = split_into_shards(steps)
    identity = Identity.of(steps, shards)
    reporter = _Reporter(steps, progress)
    try:
        estimated(Estimate(reporter.total, size, bits_per_weight(steps), place.free_bytes()))
        with place:
            written = Journal(place.partial)
            try:
                kept = _kept(written, identity, shards, notice)
                place.keep_only({journal.NAME, *kept})
                place.check_room(size - written.saved)
                copy_settings(source, place.partial)
                write_config(source, place.partial, config, dtype, quantization_map(steps))
                files = _write_weights(place.partial, shards, kept, written, reporter)
                write_index(place.partial, shards)
                facts = Facts(
                    source=name or source.resolve().name,
                    is_hub_id=name is not None,
                    identity=identity,
                    recipe=_name_of(quantization),
                    dtypes=_plain_dtypes(steps),
                    weight_bytes=size,
                    bits_per_weight=bits_per_weight(steps),
                    files=files,
                    verified=compare(place.partial, steps) if verify else None,
                )
                write_card(source, place.partial, facts)
                if not identity.source_is_unchanged(source):
                    raise UserError(f"{source} changed while it was converted; run this again")
                place.check_replaceable()  # what came in the meantime, too
                place.finish(written.file)
            except (KeyboardInterrupt, SystemExit):
                if not written.saved:
                    place.clear()
                else:
                    notice(f"stopped; the same command goes on with {target}")
                raise
            except BaseException:
                place.clear()
                raise
    except OSError as problem:
        raise write_error(problem, target, size) from None
    return Converted(target, reporter.total, size, _plain_dtypes(steps))


def _kept(
    written: Journal, identity: Identity, shards: Sequence[Shard], notice: Callable[[str], None]
) -> dict[str, Kept]:
    """What of an earlier run can be kept; where it is nothing, a new journal is begun."""
    earlier = written.found()
    if earlier == identity:
        kept = {file: each for file, each in written.kept(shards).items() if each.count}
        if kept:
            notice(f"going on where it stopped: {written.saved / 1e9:.1f} GB are there already")
        return kept
    if earlier is not None:
        changed = (
            "the source has changed"
            if earlier.source != identity.source
            else ("what an interrupted conversion with other settings left is replaced")
        )
        notice(f"{changed}: starting anew")
    written.begin(identity)
    return {}


def _write_weights(
    folder: Path,
    shards: Sequence[Shard],
    kept: dict[str, Kept],
    written: Journal,
    reporter: _Reporter,
) -> dict[str, str]:
    """Fills the files that are not whole yet, and notes in the journal how far they are.

    Returns the SHA-256 of each file.
    """
    digests = {}
    starts = {shard.file: kept.get(shard.file, Kept()) for shard in shards}
    done = {shard.file: shard.steps_within(starts[shard.file].count) for shard in shards}
    for shard in shards:
        for step in shard.steps[: done[shard.file]]:
            reporter.skip(step)
    waiting = chain.from_iterable(shard.steps[done[shard.file] :] for shard in shards)
    converted = blocks.converted(waiting)
    with ThreadPoolExecutor(1) as behind:
        for shard in shards:
            start = starts[shard.file]
            if start.count == shard.nbytes:
                digests[shard.file] = start.digest.hexdigest()
                continue
            with ShardFile(folder, shard, start.count, start.digest) as file:
                noted, notes = file.position, []
                for step in shard.steps[done[shard.file] :]:
                    file.write_step(_of_one_step(step, converted, reporter))
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
    """Notes how far a file is, as soon as it is on the disk: nobody waits for that meanwhile."""
    return behind.submit(
        written.add, shard, file.position, file.sha256(), file.position - noted, file.flush()
    )


def _of_one_step(
    step: Step, converted: Iterator[ConvertedBlock], reporter: _Reporter
) -> Iterator[ConvertedBlock]:
    for each in converted:
        assert each.block.step is step
        yield each
        reporter.report(step, each.block.stop - each.block.start)
        if each.block.last:
            return


class _Reporter:
    def __init__(self, steps: Sequence[Step], progress: Callable[[Progress], None]) -> None:
        self.total = sum(step.source.entry.nbytes for step in steps)
        self._done = 0
        self._progress = progress

    def skip(self, step: Step) -> None:
        """A step that was done by an earlier run."""
        self._done += step.source.entry.nbytes

    def report(self, step: Step, nbytes: int) -> None:
        self._done += nbytes
        self._progress(Progress(self._done, self.total, step.source.name))


def _name_of(quantization: Quantization | Recipe | None) -> str | None:
    recipe = uniform(quantization) if isinstance(quantization, Quantization) else quantization
    return None if recipe is None else recipe.name


def _plain_dtypes(steps: Sequence[Step]) -> tuple[str, ...]:
    plain = {step.targets[0].dtype for step in steps if step.quantization is None}
    return tuple(sorted(str(dtype).removeprefix("mlx.core.") for dtype in plain))
