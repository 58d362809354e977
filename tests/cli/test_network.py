"""No command opens a socket unless a flag of the person's own names a model of the hub.

Each command runs in a process whose audit hook writes down every look-up and connection.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing.kinds import QUESTION, lay_desk

pytestmark = pytest.mark.processes

HOOK = """
import os, sys

def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        with open(os.environ["HEARD"], "a") as file:
            file.write(f"{event} {arguments[1:]}\\n")

sys.addaudithook(hear)
"""
HUB_ID = "somebody/something"
ASK = ("ask", "picture.png", QUESTION, "--max-tokens", "2")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk with every kind of file; those that name a model of the hub begin with `hub`."""
    folder = tmp_path_factory.mktemp("network")
    desk = folder / "desk"
    lay_desk(desk)
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    trace = json.loads((desk / "trace.json").read_text())
    (desk / "local-trace.json").write_text(json.dumps({**trace, "model": "model"}))
    (desk / "hub-trace.json").write_text(json.dumps({**trace, "model": HUB_ID}))
    trace["search"]["plan"]["judge"] = HUB_ID
    (desk / "hub-judge-trace.json").write_text(json.dumps({**trace, "model": "model"}))
    for name, key in (("adapter", "base_model"), ("peft", "base_model_name_or_path")):
        values = json.loads((desk / name / "adapter_config.json").read_text())
        (desk / f"hub-{name}").mkdir()
        for file in (desk / name).iterdir():
            (desk / f"hub-{name}" / file.name).write_bytes(file.read_bytes())
        text = json.dumps({**values, key: HUB_ID})
        (desk / f"hub-{name}" / "adapter_config.json").write_text(text)
    (desk / "hub-lora.yaml").write_text(f"model: {HUB_ID}\ndata: rows.jsonl\n")
    plan = f"judge: {HUB_ID}\nsteps: [{{write: answer, candidates: 2}}]\n"
    (desk / "hub-plan.yaml").write_text(plan)
    return desk


def run(desk: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs a command; returns how it ended, and what its sockets were for."""
    heard = desk.parent / "heard"
    heard.unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    path = os.pathsep.join((str(desk.parent / "hook"), str(Path(__file__).parents[2])))
    # Nobody listens there, should a command try all the same.
    env |= {"PYTHONPATH": path, "HEARD": str(heard), "HF_ENDPOINT": "http://127.0.0.1:9"}
    env |= {"HF_HOME": str(desk.parent / "hub")}
    command = [sys.executable, "-m", "llavacot_mlx", *arguments]
    done = subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, timeout=120)
    return done, heard.read_text() if heard.exists() else ""


def test_a_flag_that_names_a_model_of_the_hub_may_connect(desk: Path) -> None:
    """The hook hears it, so its silence below means something."""
    done, heard = run(desk, *ASK, "--model", HUB_ID)
    assert done.returncode == 1
    assert "127.0.0.1" in heard


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("trace", "hub-trace.json", "--replay"), f"--model {HUB_ID}"),
        (("trace", "hub-judge-trace.json", "--replay"), f"hf download {HUB_ID}"),
        ((*ASK, "--adapter-path", "hub-adapter"), f"--model {HUB_ID}"),
        (("fuse", "--adapter-path", "hub-adapter", "--save-path", "out"), f"--model {HUB_ID}"),
        (("calibrate", "rows.jsonl", "--adapter-path", "hub-adapter"), f"--model {HUB_ID}"),
        (("convert", "hub-peft", "--mlx-path", "out"), f"--model {HUB_ID}"),
        (("lora-train", "-c", "hub-lora.yaml"), f"--model {HUB_ID}"),
        ((*ASK, "--plan", "hub-plan.yaml", "--model", "model"), f"hf download {HUB_ID}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_file_that_names_a_model_of_the_hub(
    arguments: tuple[str, ...], flag: str, desk: Path
) -> None:
    """Each of these once asked the hub, for whatever the file's author wanted fetched."""
    done, heard = run(desk, *arguments)
    assert heard == ""
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"{flag}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (*ASK, "--model", "model", "--trace", "new.json"),
        (*ASK, "--model", "model", "--plan", "plan.yaml"),
        (*ASK, "--model", "model", "--adapter-path", "adapter"),
        ("trace", "trace.json", "--html", "out.html"),
        ("trace", "local-trace.json", "--replay"),
        ("info", "model"),
        ("data", "check", "rows.jsonl", "--model", "model"),
        ("data", "stats", "rows.jsonl", "--model", "model"),
        ("calibrate", "rows.jsonl", "--model", "model", "--limit", "1", "--force"),
        ("convert", "model", "--mlx-path", "converted", "-q"),
        ("convert", "peft", "--mlx-path", "converted-adapter", "--model", "model"),
        ("fuse", "--model", "model", "--adapter-path", "adapter", "--save-path", "fused"),
        ("export", "model", "--save-path", "exported"),
        ("lora-train", "--model", "model", "--data", "rows.jsonl", "--iters", "1"),
    ],
    ids=" ".join,
)
def test_files_alone_need_no_network(arguments: tuple[str, ...], desk: Path) -> None:
    done, heard = run(desk, *arguments)
    assert done.returncode == 0, done.stderr
    assert heard == ""
