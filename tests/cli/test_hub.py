"""`--model owner/name`: from a hub on this machine, the cache, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from fakes import command
from terminal_session import TerminalSession

pytestmark = pytest.mark.processes

FILES = {
    "config.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
    "model-1.safetensors": b"w" * 100_000,
    "tokenizer.json": b'{"model": {}}',
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"import os",
    "README.md": b"# Model",
}
SAFE = {"config.json", "model.safetensors.index.json", "model-1.safetensors", "tokenizer.json"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(FILES) as hub:
        yield hub


def environment(desk: Path, hub: FakeHub, **more: str) -> dict[str, str]:
    usual = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**usual, "HF_ENDPOINT": hub.url, "HF_HOME": str(desk / "hf"), **more}


def ask(
    desk: Path, hub: FakeHub, model: str = "owner/name", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(desk), "ask", "example.png", "?", "--model", model, "--json"],
        cwd=desk,
        env=environment(desk, hub, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_model_is_downloaded_aloud_once_and_never_what_could_run_code(
    desk: Path, hub: FakeHub
) -> None:
    first = ask(desk, hub)
    assert first.stderr == f"downloading owner/name, 100 kB, from {hub.url} …\n"
    assert json.loads(first.stdout)["model"] == "owner/name"
    assert set(hub.downloaded) == SAFE

    hub.downloaded.clear()
    again = ask(desk, hub)
    assert (again.returncode, again.stderr) == (0, "")
    assert hub.downloaded == []


def test_what_was_downloaded_needs_no_network(desk: Path, hub: FakeHub) -> None:
    ask(desk, hub)
    assert ask(desk, hub, HF_HUB_OFFLINE="1").returncode == 0
    assert ask(desk, hub, HF_ENDPOINT="http://127.0.0.1:9").returncode == 0


def test_offline_says_what_to_do(desk: Path, hub: FakeHub) -> None:
    done = ask(desk, hub, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr == (
        "error: owner/name: not downloaded yet, and HF_HUB_OFFLINE forbids the network; "
        "unset it, or name a folder\n"
    )


def test_no_network_is_one_line(desk: Path, hub: FakeHub) -> None:
    done = ask(desk, hub, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: owner/name: not downloaded yet, and the download failed (")
    assert line.endswith("; check the network and run this again, or name a folder")


def test_a_model_that_the_hub_does_not_know(desk: Path, hub: FakeHub) -> None:
    done = ask(desk, hub, model="nobody/nothing")
    assert done.returncode == 1
    assert done.stderr == (
        "error: nobody/nothing: no such folder here and no such model on the hub "
        "(private: hf auth login)\n"
    )


def test_a_model_without_safetensors_is_not_downloaded(desk: Path, hub: FakeHub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    done = ask(desk, hub)
    assert done.returncode == 1
    assert "no config.json and *.safetensors" in done.stderr
    assert hub.downloaded == []


def test_a_download_that_was_cut_off_is_completed(desk: Path, hub: FakeHub) -> None:
    """The shard's name in the index is what tells that something is missing."""
    hub.files = {name: FILES[name] for name in ("config.json", "tokenizer.json")}
    hub.files["model-2.safetensors"] = b"w"  # so that there are weights, but not those of the index
    hub.files["model.safetensors.index.json"] = FILES["model.safetensors.index.json"]
    cut = ask(desk, hub)
    assert cut.returncode == 1
    assert "changed on the hub" in cut.stderr
    hub.files = FILES
    assert ask(desk, hub).returncode == 0
    assert "model-1.safetensors" in hub.downloaded


def test_a_download_has_a_bar_on_a_terminal_and_stops_at_once(desk: Path, hub: FakeHub) -> None:
    hub.pause = 0.02
    words = [*command(desk), "ask", str(desk / "example.png"), "?", "--model", "owner/name"]
    with TerminalSession(words, environment=environment(desk, hub)) as session:
        session.wait_for("downloading owner/name, 100 kB, from ")
        session.wait_for("━━━━")
        session.press(b"\x03")
        assert session.finish() == 130
        assert "Traceback" not in session.text
        assert session.terminal.cursor_visible
