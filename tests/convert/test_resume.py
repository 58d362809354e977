"""Conversions that are killed: nothing looks finished, and the same command goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from llavacot_mlx.convert import blocks, shards
from llavacot_mlx.convert import convert as run
from llavacot_mlx.convert.convert import Converted, Progress, convert
from llavacot_mlx.convert.journal import Journal
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization

FOUR_BITS = Quantization(group_size=32, bits=4)
SHARD_BYTES, CHECKPOINT_BYTES, BLOCK_BYTES = 60_000, 15_000, 4_000

# Says when it is ready, so that a kill hits the conversion and not its imports.
CHILD = f"""
import os
import sys
from pathlib import Path
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.convert import blocks, shards
from llavacot_mlx.convert import convert as run
shards._SHARD_BYTES, run._CHECKPOINT_BYTES = {SHARD_BYTES}, {CHECKPOINT_BYTES}
blocks.BLOCK_BYTES = {BLOCK_BYTES}
os.fsync = lambda _: None
print("ready", flush=True)
sys.stdin.readline()
run.convert(Path(sys.argv[1]), Path(sys.argv[2]), quantization={FOUR_BITS!r}, force=True)
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model takes as many files, notes and blocks as a large one."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", SHARD_BYTES)
    monkeypatch.setattr(run, "_CHECKPOINT_BYTES", CHECKPOINT_BYTES)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK_BYTES)
    # A process that is killed loses nothing that it has written; only a machine does.
    monkeypatch.setattr(os, "fsync", lambda _: None)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(quantizable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that is nobody else's: its times and its path are part of what is compared."""
    return Path(shutil.copytree(quantizable, tmp_path_factory.mktemp("source") / "model"))


@pytest.fixture
def undisturbed(source: Path, tmp_path: Path) -> dict[str, str]:
    convert(source, tmp_path / "undisturbed" / "out", quantization=FOUR_BITS)
    return content(tmp_path / "undisturbed" / "out")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def children(source: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Processes that are ready to convert, the next one always on its way."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(source), str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    following = start()
    try:
        while True:
            child, following = following, start()
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
    finally:
        following.kill()
        following.communicate()


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.mark.processes
def test_killed_at_any_moment_the_next_run_ends_as_if_nothing_had_been(
    source: Path, out: Path, undisturbed: dict[str, str]
) -> None:
    """Twenty times or more, over nothing or an older model; there is never half a model."""
    chance = random.Random(7)
    resumed = 0
    ready = children(source, out)
    child = next(ready)
    started = time.perf_counter()
    go(child)
    assert child.communicate()[0] == "done\n"
    whole = time.perf_counter() - started
    # On a busy machine most kills come before the first note of the journal: then there are more.
    for number in range(60):
        if number >= 20 and resumed >= 3:
            break
        shutil.rmtree(out)
        older = None
        if number % 2:
            shutil.copytree(source, out)
            older = content(out)
        child = next(ready)
        go(child)
        time.sleep(chance.uniform(0, 0.7 * whole))
        child.kill()
        child.communicate()
        if out.exists():
            assert content(out) in (older, undisturbed)
        notices: list[str] = []
        convert(source, out, quantization=FOUR_BITS, force=True, notice=notices.append)
        resumed += any("resuming where it stopped" in line for line in notices)
        assert content(out) == undisturbed
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    ready.close()  # type: ignore[attr-defined]
    assert resumed >= 3  # or nothing was resumed, and this showed little


class Stopped:
    """Progress that is stopped once so many bytes are read, as by Ctrl-C."""

    def __init__(self, share: float, error: BaseException | None = None) -> None:
        self.share, self.error = share, error or KeyboardInterrupt()

    def __call__(self, now: Progress) -> None:
        if now.read_bytes >= self.share * now.total_bytes:
            raise self.error


def stop(source: Path, out: Path, share: float = 0.7, **how: object) -> Path:
    """Interrupts a conversion, and returns the hidden folder that it left."""
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, progress=Stopped(share), **{"quantization": FOUR_BITS, **how})  # type: ignore[arg-type]
    assert not out.exists()
    (left,) = out.parent.iterdir()
    return left


def again(source: Path, out: Path, **how: object) -> tuple[Converted, list[str], list[Progress]]:
    notices: list[str] = []
    steps: list[Progress] = []
    done = convert(
        source,
        out,
        notice=notices.append,
        progress=steps.append,
        **{"quantization": FOUR_BITS, **how},  # type: ignore[arg-type]
    )
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return done, notices, steps


def test_ctrl_c_keeps_what_is_done(source: Path, out: Path, undisturbed: dict[str, str]) -> None:
    left = stop(source, out)
    assert left.name == ".out.partial"
    _, notices, steps = again(source, out)
    assert [line.startswith("resuming where it stopped") for line in notices] == [True]
    assert content(out) == undisturbed
    # Most was there, so most was not read again; the bar starts where it stopped.
    assert steps[0].read_bytes > 0.4 * steps[0].total_bytes
    assert steps[-1].read_bytes == steps[-1].total_bytes


def cut_off(left: Path) -> None:
    os.truncate(sorted(left.glob("model-*"))[0], 40_000)


def gone(left: Path) -> None:
    sorted(left.glob("model-*"))[0].unlink()


def torn_journal(left: Path) -> None:
    file = left / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-30])


def strange_journal(left: Path) -> None:
    (left / "journal.jsonl").write_text("[]\n")


def no_journal(left: Path) -> None:
    (left / "journal.jsonl").unlink()


def strangers(left: Path) -> None:
    (left / "pytorch_model.bin").write_text("no")
    (left / "more").mkdir()


@pytest.mark.parametrize(
    "harm", [cut_off, gone, torn_journal, strange_journal, no_journal, strangers]
)
def test_what_is_not_as_it_was_left_is_done_again(
    harm: Callable[[Path], None], source: Path, out: Path, undisturbed: dict[str, str]
) -> None:
    harm(stop(source, out))
    again(source, out)
    assert content(out) == undisturbed


def test_a_byte_that_changed_is_found(source: Path, out: Path, undisturbed: dict[str, str]) -> None:
    """By its hash: neither size nor time need show it."""
    left = stop(source, out)
    file = sorted(left.glob("model-*"))[0]
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    again(source, out)
    assert content(out) == undisturbed


def test_a_source_that_changed_between_two_runs(source: Path, out: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "mine"))
    stop(mine, out)
    file = mine / "model.safetensors"
    arrays = dict(mx.load(str(file)))
    arrays["multi_modal_projector.bias"] = arrays["multi_modal_projector.bias"] + 1
    mx.eval(arrays)
    mx.save_safetensors(str(file), arrays)
    _, notices, _ = again(mine, out)
    assert notices == ["the source has changed: starting over"]
    convert(mine, tmp_path / "fresh", quantization=FOUR_BITS)
    assert content(out) == content(tmp_path / "fresh")


def test_a_source_that_changes_meanwhile(source: Path, out: Path, tmp_path: Path) -> None:
    """Half of the weights would be of one model and half of another."""
    mine = Path(shutil.copytree(source, tmp_path / "mine"))
    with pytest.raises(UserError, match="mine changed while it was converted; run this again"):
        convert(mine, out, progress=lambda _: os.utime(mine / "model.safetensors"))
    assert not list(out.parent.iterdir())


def test_another_recipe_starts_anew(source: Path, out: Path, tmp_path: Path) -> None:
    stop(source, out, quantization=Quantization(32, 8))
    _, notices, _ = again(source, out)
    assert notices == [
        "what an interrupted conversion with other settings left is replaced: starting over"
    ]
    convert(source, tmp_path / "fresh", quantization=FOUR_BITS)
    assert content(out) == content(tmp_path / "fresh")


def test_two_at_a_time(source: Path, out: Path, undisturbed: dict[str, str]) -> None:
    """The second is refused in a line, and the first is not disturbed."""
    refusals = []

    def second(_: Progress) -> None:
        if not refusals:
            with pytest.raises(UserError, match="is being written by another conversion") as why:
                convert(source, out, quantization=FOUR_BITS)
            refusals.append(str(why.value))

    convert(source, out, quantization=FOUR_BITS, progress=second)
    assert len(refusals) == 1
    assert content(out) == undisturbed


def test_a_disk_without_locks(
    source: Path, out: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks have none; that is no reason to refuse."""

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    convert(source, out, quantization=FOUR_BITS)
    assert content(out) == undisturbed


def test_killed_between_the_two_renames(source: Path, out: Path) -> None:
    """The old model had lost its name, and the new one did not have it yet."""
    convert(source, out, dtype="bfloat16")
    out.rename(out.with_name(".out.replaced"))
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, progress=Stopped(0), force=True)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_room_is_asked_for_what_is_missing_only(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted run has written takes its room already."""
    stop(source, out, share=0.9)
    usage = shutil.disk_usage(out.parent)._replace(free=64 * 2**20 + 200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    again(source, out)


@pytest.mark.parametrize("file", [3, ["x"], None, {"a": 1}])
def test_a_journal_of_nonsense_counts_for_nothing(file: object, tmp_path: Path) -> None:
    """A name that was a list was once a TypeError."""
    found = Journal(tmp_path)
    line = json.dumps({"file": file, "bytes": 1, "sha256": "x"})
    found.file.write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert found.found() is None
    assert found.kept([]) == {}
