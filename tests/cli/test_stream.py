"""`convert owner/name --stream`: the same bytes as without, and no source weight on the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub

from llavacot_mlx.convert.convert import convert as convert_folder

pytestmark = pytest.mark.processes

FLAGS = ("-q", "--q-group-size", "32")


@pytest.fixture(scope="module")
def files(quantizable: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint in three files, as the hub has it."""
    import mlx.core as mx

    folder = tmp_path_factory.mktemp("sharded") / "model"
    shutil.copytree(quantizable, folder)
    tensors = {}
    for file in folder.glob("*.safetensors"):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        tensors |= loaded
        mx.eval(loaded)
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    weight_map = {}
    names = sorted(tensors)
    for number in range(3):
        shard = f"model-0000{number + 1}-of-00003.safetensors"
        mx.save_safetensors(str(folder / shard), {name: tensors[name] for name in names[number::3]})
        weight_map |= dict.fromkeys(names[number::3], shard)
    index = f'{{"metadata": {{}}, "weight_map": {weight_map}}}'.replace("'", '"')
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(files) as hub:
        yield hub


def environment(folder: Path, hub: FakeHub, **more: str) -> dict[str, str]:
    usual = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    # What lies in the temporary folder counts as left behind.
    (folder / "tmp").mkdir(exist_ok=True)
    places = {"HF_HOME": str(folder / "hf"), "TMPDIR": str(folder / "tmp")}
    return {**usual, "HF_ENDPOINT": hub.url, **places, **more}


def words(*flags: str) -> list[str]:
    command = [sys.executable, "-m", "llavacot_mlx", "convert", "owner/name"]
    return [*command, "--mlx-path", "out", *flags]


def convert(
    folder: Path, hub: FakeHub, *flags: str, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words(*flags),
        cwd=folder,
        env=environment(folder, hub, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def plain(files: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """What a conversion of the downloaded files writes."""
    with FakeHub(files) as hub:
        elsewhere = tmp_path / "plain"
        elsewhere.mkdir()
        convert(elsewhere, hub, *FLAGS)
        return contents(elsewhere / "out")


def weights_on_disk(folder: Path, files: dict[str, bytes]) -> int:
    """Bytes of the source's weights that lie anywhere below a folder, under whatever name."""
    sizes = {len(data) for name, data in files.items() if name.endswith(".safetensors")}
    found = [*(folder / "hf").rglob("*"), *(folder / "tmp").rglob("*")]
    weights = [each for each in found if each.is_file() and each.stat().st_size in sizes]
    return sum(512 * file.stat().st_blocks for file in weights)


def test_it_writes_what_a_download_would_have_become(
    plain: dict[str, bytes], files: dict[str, bytes], hub: FakeHub, tmp_path: Path
) -> None:
    done = convert(tmp_path, hub, "--stream", *FLAGS)
    assert contents(tmp_path / "out") == plain
    assert done.stdout.startswith("wrote out, ")
    weights = {name: data for name, data in files.items() if name.endswith(".safetensors")}
    assert not set(hub.downloaded) & set(weights)  # none was fetched whole
    assert hub.parts_served == sum(map(len, weights.values()))  # each byte once
    assert weights_on_disk(tmp_path, files) == 0
    assert not list((tmp_path / "tmp").iterdir())


def test_connections_that_break_and_a_busy_hub(
    plain: dict[str, bytes], hub: FakeHub, tmp_path: Path
) -> None:
    hub.longest = 20_000
    hub.busy = 3
    convert(tmp_path, hub, "--stream", *FLAGS)
    assert contents(tmp_path / "out") == plain


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_what_was_stopped_goes_on(
    stop: signal.Signals, plain: dict[str, bytes], hub: FakeHub, tmp_path: Path
) -> None:
    """And reads again at most what had not reached the disk."""
    hub.pause = 0.05
    with subprocess.Popen(
        words("--stream", *FLAGS),
        cwd=tmp_path,
        env=environment(tmp_path, hub),
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        deadline = time.monotonic() + 60
        while hub.parts_served < 100_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(stop)
        said = running.communicate()[1]
    assert not (tmp_path / "out").exists()
    if stop is signal.SIGINT:
        assert "Traceback" not in said
    hub.pause = 0.0
    convert(tmp_path, hub, "--stream", *FLAGS)
    assert contents(tmp_path / "out") == plain
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_network_that_fails_is_one_line_and_the_same_command_goes_on(
    plain: dict[str, bytes], hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.longest = 0
    patched = (
        "import sys; import llavacot_mlx.convert.hub_source as h; h._TRIES = 2; "
        "from llavacot_mlx.cli.main import run; sys.argv[0] = 'llavacot'; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", patched, *words("--stream", *FLAGS)[3:]],
        cwd=tmp_path,
        env=environment(tmp_path, hub),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: owner/name: model-00001-of-00003.safetensors cannot be read from"
    )
    assert line.endswith("; check the network, and run the same command again to go on")
    hub.longest = None
    convert(tmp_path, hub, "--stream", *FLAGS)
    assert contents(tmp_path / "out") == plain


def test_a_hub_that_serves_no_parts(hub: FakeHub, tmp_path: Path) -> None:
    hub.ranges = False
    done = convert(tmp_path, hub, "--stream", code=1)
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: owner/name: {hub.url} does not serve parts of files; convert without --stream"
    )
    assert not (tmp_path / "out").exists()


def test_an_error_names_the_model_and_no_folder_of_ours(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {**hub.files, "tokenizer.json": b"{}"}
    done = convert(tmp_path, hub, "--stream", code=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: owner/name/tokenizer.json")


def test_what_was_downloaded_before_is_taken_from_the_disk(
    plain: dict[str, bytes], files: dict[str, bytes], hub: FakeHub, tmp_path: Path
) -> None:
    convert(tmp_path, hub, *FLAGS)
    shutil.rmtree(tmp_path / "out")
    done = convert(tmp_path, hub, "--stream", *FLAGS)
    assert "owner/name was downloaded before: converting it from the disk\n" in done.stderr
    assert hub.parts_served == 0
    assert contents(tmp_path / "out") == plain
    assert weights_on_disk(tmp_path, files) > 0  # the cache is the person's


def test_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    done = convert(tmp_path, hub, "--stream", code=1, HF_HUB_OFFLINE="1")
    (line,) = done.stderr.splitlines()
    assert "HF_HUB_OFFLINE forbids the network" in line


def test_another_commit_starts_over(
    hub: FakeHub, tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    """Blocks of two versions of a model never come into one folder."""
    hub.pause = 0.05
    with subprocess.Popen(
        words("--stream", *FLAGS), cwd=tmp_path, env=environment(tmp_path, hub)
    ) as running:
        deadline = time.monotonic() + 60
        while hub.parts_served < 100_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        running.kill()
    hub.pause = 0.0
    hub.commit = "f" * 40
    left = (tmp_path / ".out.partial").exists()
    done = convert(tmp_path, hub, "--stream", *FLAGS)
    if left:
        assert "the source has changed: starting over" in done.stderr
    assert contents(tmp_path / "out") == plain


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--stream", "--verify"), "--verify with --stream: drop one"),
        (("--stream",), "--stream: for a model on the hub"),
    ],
)
def test_what_it_cannot_do(flags: tuple[str, ...], line: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    source = "./here" if flags == ("--stream",) else "owner/name"
    command = [sys.executable, "-m", "llavacot_mlx", "convert", source, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}")
    assert len(done.stderr.splitlines()) <= 2


def test_the_folder_has_what_a_conversion_of_a_folder_has(
    plain: dict[str, bytes], files: dict[str, bytes], tmp_path: Path
) -> None:
    """The comparison above would prove little if both were incomplete."""
    source = tmp_path / "source"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    convert_folder(source, tmp_path / "direct")
    assert set(contents(tmp_path / "direct")) <= set(plain)
