"""`--model owner/name`: from a hub on this machine, the cache, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import CONFIG, FakeHub
from fakes import command
from terminal_session import TerminalSession

pytestmark = pytest.mark.processes

FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
    "model-1.safetensors": b"w" * 100_000,
    "tokenizer.json": b'{"model": {}}',
    "preprocessor_config.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"import os",
    "README.md": b"# Model",
}
SAFE = {
    *("config.json", "model.safetensors.index.json", "model-1.safetensors", "tokenizer.json"),
    "preprocessor_config.json",
}


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
    assert first.stderr == f"downloading owner/name, 101 kB, from {hub.url} …\n"
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
    ask(desk, hub)
    (shard,) = (desk / "hf").rglob("snapshots/*/model-1.safetensors")
    shard.resolve().unlink()
    shard.unlink()
    hub.downloaded.clear()
    assert ask(desk, hub).returncode == 0
    assert hub.downloaded == ["model-1.safetensors"]
    (settings,) = (desk / "hf").rglob("snapshots/*/tokenizer.json")
    settings.unlink()
    assert ask(desk, hub, HF_HUB_OFFLINE="1").returncode == 1
    assert ask(desk, hub).returncode == 0


def bad(**changes: object) -> dict[str, bytes]:
    """The model's files with changes to config.json."""
    return {**FILES, "config.json": json.dumps({**CONFIG, **changes}).encode()}


def without(*names: str) -> dict[str, bytes]:
    return {name: data for name, data in FILES.items() if name not in names}


BASE = "meta-llama/Llama-3.2-11B-Vision-Instruct"
WEIGHTS = ("model.safetensors.index.json", "model-1.safetensors")
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "bitsandbytes": (
        bad(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "'bitsandbytes', which MLX cannot read",
    ),
    "another type": (bad(model_type="qwen2_vl"), "the model is of type 'qwen2_vl'"),
    "an unknown architecture": (bad(quantum_heads=3), "quantum_heads: unknown key"),
    "GGUF only": (
        {**without(*WEIGHTS, "pytorch_model.bin"), "model-Q4_K_M.gguf": b"GGUF"},
        "it has GGUF weights (.gguf), and only safetensors are read",
    ),
    "original only": (
        {
            **without(*WEIGHTS, "pytorch_model.bin"),
            "original/consolidated.00.pth": b"pickle",
            "original/params.json": b"{}",
            "original/model.safetensors": b"w",
        },
        "has no config.json and *.safetensors on the hub",
    ),
    "an adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w"},
        "it is an adapter",
    ),
    "a broken config.json": ({**FILES, "config.json": b"{"}, "not valid JSON"),
}
BAD["no tokenizer"] = (
    {
        name: data
        for name, data in bad(_name_or_path=BASE).items()
        if name not in ("tokenizer.json", "preprocessor_config.json")
    },
    "tokenizer.json and preprocessor_config.json are missing; take what is missing from " + BASE,
)


@pytest.mark.parametrize("kind", BAD)
def test_a_model_that_cannot_be_run_costs_no_weight(kind: str, desk: Path, hub: FakeHub) -> None:
    """43 GB were downloaded, and then config.json was looked at."""
    hub.files, said = BAD[kind]
    done = ask(desk, hub)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in line
    assert "owner/name" in line
    assert set(hub.downloaded) <= {"config.json"}


def test_only_the_files_of_the_model_are_downloaded(desk: Path, hub: FakeHub) -> None:
    """An `original/` folder and a trainer's checkpoints are as large as the model once more."""
    more = (
        "original/params.json",
        "original/tokenizer.model",
        "checkpoint-500/model.safetensors",
        "consolidated.safetensors",
        "._model-1.safetensors",
        ".gitattributes",
    )
    hub.files = {**FILES, **dict.fromkeys(more, b"x" * 5000)}
    assert ask(desk, hub).returncode == 0
    assert set(hub.downloaded) == SAFE


def test_a_stale_index_on_the_hub(desk: Path, hub: FakeHub) -> None:
    """The download was complete, and each time "changed on the hub during the download"."""
    hub.files = {**without("model-1.safetensors"), "model.safetensors": b"w" * 1000}
    first = ask(desk, hub)
    assert first.returncode == 0
    assert "index.json is stale" in first.stderr
    assert "model.safetensors" in hub.downloaded
    hub.downloaded.clear()
    assert ask(desk, hub, HF_HUB_OFFLINE="1").returncode == 0
    assert hub.downloaded == []


@pytest.mark.parametrize(
    "name",
    [
        "owner/name/",
        " owner/name ",
        "{url}/owner/name",
        "{url}/owner/name/",
        "{url}/owner/name/tree/main",
        "{url}/owner/name/blob/main/config.json?x=1",
        "hf://owner/name",
    ],
)
def test_an_address_means_the_model(name: str, desk: Path, hub: FakeHub) -> None:
    done = ask(desk, hub, model=name.format(url=hub.url))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] in ("owner/name", "owner/name@main")


def test_a_revision(desk: Path, hub: FakeHub) -> None:
    done = ask(desk, hub, model="owner/name@v2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "owner/name@v2"
    flags = [*command(desk), "ask", "example.png", "?", "--model", "owner/name", "--json"]
    done = subprocess.run(
        [*flags, "--revision", "v2"],
        cwd=desk,
        env=environment(desk, hub),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["model"] == "owner/name@v2", done.stderr
    done = ask(desk, hub, model="owner/name@v3")
    assert done.returncode == 1
    assert "owner/name@v3: the model on the hub has no such revision" in done.stderr


def test_files_are_downloaded_side_by_side(desk: Path, hub: FakeHub) -> None:
    shards = {f"model-{n}.safetensors": b"w" * 20_000 for n in range(1, 5)}
    index = {"weight_map": {name[6]: name for name in shards}}
    hub.files = {**FILES, **shards, "model.safetensors.index.json": json.dumps(index).encode()}
    hub.pause = 0.02
    assert ask(desk, hub).returncode == 0
    assert hub.most_fetching > 1


def test_a_download_has_a_bar_on_a_terminal_and_stops_at_once(desk: Path, hub: FakeHub) -> None:
    hub.pause = 0.02
    words = [*command(desk), "ask", str(desk / "example.png"), "?", "--model", "owner/name"]
    with TerminalSession(words, environment=environment(desk, hub)) as session:
        session.wait_for("downloading owner/name, 101 kB, from ")
        session.wait_for("/100.7 kB")
        session.press(b"\x03")
        assert session.finish() == 130
        assert "Traceback" not in session.text
        assert session.terminal.cursor_visible
