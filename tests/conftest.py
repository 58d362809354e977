"""What several test files start from: random tiny models, and a folder for the command line.

torch and transformers are imported inside the fixtures: they cost seconds, and most tests need
neither.
"""

# ruff: noqa: E402

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from llavacot_mlx.cli.openblas import load_fast_blas

# A person's own defaults are not the suite's.
os.environ.pop("LLAVACOT_MODEL", None)
os.environ["LLAVACOT_CONFIG"] = os.devnull

# Before MLX is imported: its wheel for Linux has a slow BLAS, and half of the tests' time was its.
# Each worker of xdist has a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
load_fast_blas()

import llama_vocabulary
import pytest
from PIL import Image
from random_model import CONFIG, random_model

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.tokenizer import Tokenizer

PARITY = Path(__file__).parent / "parity"
DEMO = demo.model_path().parent

# Events of Python's audit that announce another process.
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec")
NOT_FAST = ("processes", "slow", "full_size")


class ProcessGuard:
    """Fails a test that starts a process, unless it is marked `processes`.

    So nobody can forget the marker, and `-m fast` stays fast.
    """

    def __init__(self) -> None:
        self.forbids = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _: tuple[object, ...]) -> None:
        if self.forbids and event in STARTS:
            pytest.fail(f"{event}: a test that starts a process is marked `processes`")


guard = ProcessGuard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The guard watches a test with its fixtures."""
    guard.forbids = item.get_closest_marker("processes") is None
    try:
        return (yield)
    finally:
        guard.forbids = False


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares with PyTorch is slow; what no marker slows down is fast."""
    for item in items:
        if item.path.is_relative_to(PARITY):
            item.add_marker("slow")
        if not any(item.get_closest_marker(name) for name in NOT_FAST):
            item.add_marker("fast")


def pytest_configure() -> None:
    """A shell starts its background jobs with Ctrl-C ignored, and they hand that on.

    The tests that interrupt a command failed in such a job, because the command never noticed.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def packaged_demo_stays() -> Iterator[None]:
    """No command of the suite changes the demo model or its pictures; both are the package's."""

    def digest() -> str:
        whole = hashlib.sha256()
        for file in sorted(path for path in DEMO.rglob("*") if path.is_file()):
            if file.suffix != ".pyc":
                whole.update(f"{file.relative_to(DEMO)} {file.stat().st_size}\n".encode())
                whole.update(file.read_bytes())
        return whole.hexdigest()

    before = digest()
    yield
    assert digest() == before, f"a test changed {DEMO}"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the picture `example.png`, and with `demo`, a model for the fake engine."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "example.png")
    return tmp_path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model as `save_pretrained` writes it, to be read only. Its context is 512 tokens."""
    from parity.checkpoints import GEOMETRIES, write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny"), GEOMETRIES["llama3-rope"])


@pytest.fixture(scope="session")
def quantizable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny`, with widths that groups of 32 and 64 divide. To be read only."""
    from parity.checkpoints import Geometry, write_checkpoint

    geometry = Geometry(seed=2, width=64, heads=4, kv_heads=2, mlp=128)
    return write_checkpoint(tmp_path_factory.mktemp("quantizable"), geometry)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Tokenizer]]:
    """`llama(name)`: the folder of a name in LLAMA, to be read only, and its tokenizer."""

    @cache
    def loaded(name: str) -> tuple[Path, Tokenizer]:
        real = llama_vocabulary.real_folder()
        if name == "stand-in":
            folder = llama_vocabulary.write_stand_in(tmp_path_factory.mktemp(name))
            image = llama_vocabulary.IMAGE_TOKEN_ID
        elif real is None:
            pytest.skip("Llama 3.2's own tokenizer: not in LLAVACOT_LLAMA_TOKENIZER or ../shared")
        else:
            folder, image = real, llama_vocabulary.REAL_IMAGE_TOKEN_ID
        text = replace(CONFIG.text, vocab_size=image)
        return folder, Tokenizer.load(folder, replace(CONFIG, text=text, image_token_id=image))

    return loaded


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of `tiny` to change: the folder `model` in `tmp_path`."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(scope="session")
def assistant(tiny: Path) -> Assistant:
    return Assistant.load(tiny, dtype="float32")


@pytest.fixture(scope="session")
def model() -> Mllama:
    """A random model made in memory; to be read only."""
    return random_model()
