"""A run's folder: what is asked of which model. A run goes on as it began, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.checked import checked, named, read_json, shown
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet, Task
from llavacot_mlx.evaluate.profile import Profile
from llavacot_mlx.train.distributed import Workers

FILE_NAME = "run.json"
_LOCK_NAME = ".lock"


@dataclass(frozen=True)
class ModelRecord:
    """The model of a run."""

    name: str
    fingerprint: str
    """See `checkpoint.fingerprints.base_hash`."""
    adapter: str | None = None
    adapter_sha256: str | None = None
    """Of the adapter's weights."""


@dataclass(frozen=True)
class SetRecord:
    """A set of a run, and where its questions are from."""

    task: Task
    size: int
    """Questions of the whole set."""
    source: dict[str, Any]
    categories: tuple[str, ...] = ()
    """The fields by whose values the score is shown."""
    labels: tuple[str, ...] = ()
    """Those whose cells have several values, as in `ocr,math`."""
    has_answers: bool = True
    is_papers: bool = False
    """Whether a score of it stands beside the paper's."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, each: BenchmarkSet) -> SetRecord:
        return cls(
            task=each.task,
            size=each.size,
            source=each.source,
            categories=each.categories,
            labels=each.labels,
            has_answers=all(question.answer is not None for question in each.questions),
            is_papers=each.is_papers,
            notes=each.notes,
        )


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says."""

    sets: dict[str, SetRecord]
    model: ModelRecord
    profile: Profile
    plan: dict[str, Any]
    """The search plan with all its numbers, as in a trace."""
    seed: int = 0
    repeats: int = 1
    limit: int | None = None
    until: float | None = None
    """Points to each side of the score at which the run ends."""
    all_rotations: bool = False
    kv_bits: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""

    def with_machine(self) -> RunRecord:
        """The record with the versions and the machine of this process."""
        names = ("llavacot-mlx", "mlx", "numpy", "pillow")
        versions = {name: version(name) for name in names}
        system = os.uname()
        machine = f"{system.sysname} {system.release} {system.machine}"
        return replace(self, versions=versions, machine=machine)

    def differences(self, other: RunRecord) -> list[str]:
        """In what `other`, a run into the same folder, is another run; empty where it goes on.

        A model or a file may have been moved, as long as it is the same.
        """
        mine, others = _identity(self), _identity(other)
        return [
            f"{name} is {mine[name][1] if name in mine else 'none'} there and "
            f"{others[name][1] if name in others else 'none'} here"
            for name in dict.fromkeys([*mine, *others])
            if mine.get(name, (None,))[0] != others.get(name, (None,))[0]
        ]


def _identity(record: RunRecord) -> dict[str, tuple[Any, str]]:
    """What must stay the same for a run to go on, and how an error shows it."""
    model = record.model
    value: dict[str, Any] = {
        "--seed": record.seed,
        "--repeats": record.repeats,
        "--until": record.until,
        "--all-rotations": record.all_rotations,
        "--kv-bits": record.kv_bits,
        "--set": ",".join(record.sets),
    }
    profile = record.profile.to_dict()
    value |= {f"the profile's {key}": part for key, part in profile.items() if key != "name"}
    for name, each in record.sets.items():
        for key, part in each.source.items():
            if key != "file":
                value[f"{name}'s {key}"] = part
    return {
        "the model": (model.fingerprint, f"{model.name} ({model.fingerprint[:8]})"),
        "the adapter": (
            model.adapter_sha256,
            f"{model.adapter} ({(model.adapter_sha256 or '')[:8]})" if model.adapter else "none",
        ),
        **{name: (part, shown(part)) for name, part in value.items()},
    }


def read_run(folder: Path) -> RunRecord:
    """Reads a folder's `run.json`. Raises UserError that names the key that is wrong."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of a run")
    file = folder / FILE_NAME
    value = read_json(file, f"{folder} is not the folder of a run of llavacot eval run")
    with named(file):
        return checked(RunRecord, value)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Makes a run's folder, and locks it against a second run for the time of the block.

    The lock ends with the process, however that ends. Raises UserError if another run has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise UserError(f"{folder}: cannot be made: {problem.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another run writes into it; wait for its end, or choose another --out"
            ) from None
        except OSError as problem:
            if problem.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                raise  # some network file systems have no locks
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def begun(folder: Path, record: RunRecord, workers: Workers) -> Iterator[None]:
    """Begins a run, or goes on with it, for the time of the block; of the processes one locks it.

    Raises UserError as `begin` and `writing_to` do.
    """
    with writing_to(folder) if workers.is_main else contextlib.nullcontext():
        if workers.is_main:
            begin(folder, record)
        workers.wait()
        yield


def begin(folder: Path, record: RunRecord) -> None:
    """Writes `run.json`, or checks that the run in the folder is this one.

    Only the limit may differ: a longer run keeps the answers of a shorter one. Raises UserError
    that says what differs.
    """
    if (folder / FILE_NAME).exists():
        before = read_run(folder)
        if different := before.differences(record):
            raise UserError(
                f"{folder} holds another run: {'; '.join(sorted(different))}; choose another --out"
            )
        if _size(record.limit) < _size(before.limit):
            raise UserError(
                f"--limit {record.limit}: {folder} holds a run of "
                f"{'all questions' if before.limit is None else before.limit}; choose another --out"
            )
        if before.limit == record.limit:
            return
    elif any(each.name != _LOCK_NAME for each in folder.iterdir()):
        raise UserError(
            f"{folder}: is not empty, and not the folder of a run; choose another --out"
        )
    text = json.dumps(asdict(record.with_machine()), ensure_ascii=False, indent=1)
    write_file(folder / FILE_NAME, f"{text}\n".encode())


def _size(limit: int | None) -> float:
    return float("inf") if limit is None else limit
