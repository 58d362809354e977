"""What `--help` says about every command: shared options alike, defaults true, sentences whole."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from llavacot_mlx.cli.main import SUMMARIES, app
from llavacot_mlx.convert.recipes import DEFAULTS
from llavacot_mlx.plan.plan import Settings, make_plan
from llavacot_mlx.train.settings import TrainSettings, settings_of

# Options of one name that mean another thing in these commands.
OF_THEIR_OWN = {
    "--adapter-path": {"export", "fuse", "lora-train"},  # merged, or written
    "--model": {"convert", "fuse", "trace"},  # the base of an adapter; what a trace names
    "--dtype": {"lora-train"},
    "--batch-size": {"lora-train"},  # rows of a step
    "--candidates": {"info"},  # no search chooses among them
    "--data": {"lora-train"},  # rows to train on
    "--force": {"calibrate"},  # not a folder, but a measurement
    "--hf-path": {"export"},  # hidden: the older name of its output
    "--html": {"eval report"},  # of runs
    "--judge": {"calibrate"},  # not all judges can be calibrated
    "--kv-budget": {"eval run"},  # of all answers in a batch
    "--limit": {"eval run"},  # a sample, and not the first ones
    "--max-seq-length": {"data check"},  # by default the model's context
    "--out": {"eval run"},  # a folder that a run goes on in
    "--png": {"eval curve"},
    "--version": {""},
}


def commands() -> Iterator[tuple[str, Any]]:
    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        yield name, command
        for inner, each in getattr(command, "commands", {}).items():
            yield from walk(each, f"{name} {inner}".strip())

    yield from walk(typer.main.get_command(app), "")


def options() -> dict[str, dict[str, Any]]:
    """Every option by its longest name, and in which commands it is."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, command in commands():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                found[max(parameter.opts, key=len)][name] = parameter
    return found


def text(help: str) -> str:
    """A help text without the default at its end."""
    return re.sub(r" \[default: .*\]$", "", help)


def test_an_option_that_commands_share_is_the_same_in_each() -> None:
    for flag, by_command in options().items():
        shared = {
            (text(parameter.help), parameter.metavar, parameter.is_flag)
            for command, parameter in by_command.items()
            if command not in OF_THEIR_OWN.get(flag, ())
        }
        assert len(shared) <= 1, (flag, shared)


def test_the_exceptions_are_exceptions() -> None:
    found = options()
    for flag, names in OF_THEIR_OWN.items():
        for name in names:
            assert name in found[flag], (flag, name)


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_help_text_is_a_sentence(name: str, command: Any) -> None:
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert re.search(r"[.)]$", text(parameter.help)), (name, parameter.name, parameter.help)


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_no_sentence_is_cut_at_80_columns(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"}).output
    assert "..." not in shown.replace("[ARGS]...", "").replace("NAME,...", "").replace("RUN...", "")
    examples = re.findall(r"^    llavacot .*$", shown, re.MULTILINE)  # to be pasted, so unbroken
    long = [line for line in shown.splitlines() if len(line) > 80 and line not in examples]
    assert not [line for line in long if not line.startswith("  --")], long


DEFAULT = re.compile(r"\[default: (.*)\]$")


def stated(command: str, flag: str) -> str:
    found = DEFAULT.search(options()[flag][command].help)
    assert found, (command, flag)
    return found[1]


def test_lora_train_states_the_defaults_of_its_settings() -> None:
    assert stated("lora-train", "--learning-rate") == "1e-5"
    for setting in settings_of():
        if setting.flag and setting.default_text:
            shown = stated("lora-train", setting.flag)
            value: Any = TrainSettings()
            for name in setting.path:
                value = getattr(value, name)
            if value in (None, ()):
                assert shown == setting.about.default_text
            else:
                first = shown.split()[0]
                assert (first if isinstance(value, str) else float(first)) == value, setting.path


def test_ask_states_the_defaults_of_its_searches() -> None:
    def steps(search: str) -> Any:
        return make_plan(Settings(search)).steps

    assert stated("ask", "--candidates") == "4; beams: 2"
    assert stated("ask", "--keep") == "1; swires: half"
    default, other = (
        make_plan(Settings("best-of-n")).judge,
        make_plan(Settings("stage-beam")).judge,
    )
    assert stated("ask", "--judge") == f"{default}; stage-beam: {other}"
    most = [make_plan(Settings(name)).retrace.max_retraces for name in ("swires", "swires-code")]
    assert stated("ask", "--max-retraces") == f"{most[0]}; swires-code: {most[1]}"
    assert stated("ask", "--search") == make_plan(Settings()).method
    for search, candidates, keep in (
        ("best-of-n", 4, 1), ("sentence-beam", 2, 1), ("stage-beam", 2, 1)
    ):  # fmt: skip
        for step in steps(search):
            assert (step.candidates, step.keep) == (candidates, keep), search
    assert max((step.candidates, step.keep) for step in steps("swires")) == (4, 2)


def test_convert_states_the_defaults_of_quantization() -> None:
    default = stated("convert", "--q-mode")

    def by_mode(flag: str) -> dict[str, int]:
        """From such as `4; mxfp8: 8`: the value of each mode."""
        usual, *others = stated("convert", flag).split("; ")
        values = dict.fromkeys(DEFAULTS, int(usual))
        for names, _, value in (other.partition(": ") for other in others):
            values |= dict.fromkeys(names.split(", "), int(value))
        return values

    assert default == "affine"
    assert by_mode("--q-bits") == {mode: each.bits for mode, each in DEFAULTS.items()}
    assert by_mode("--q-group-size") == {mode: each.group_size for mode, each in DEFAULTS.items()}


def test_the_list_of_commands_says_what_each_command_says_of_itself() -> None:
    """`llavacot --help` imports no command, so its lines stand in a table of their own."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        first = " ".join(command.help.split()).partition(". ")[0].removesuffix(".")
        assert SUMMARIES[name] == f"{first}."


@pytest.mark.processes
def test_the_list_of_commands_imports_none_of_them() -> None:
    program = "from llavacot_mlx.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, "--help"],
        capture_output=True,
        text=True,
    )
    assert "lora-train" in done.stdout
    assert "llavacot_mlx.cli.main" in done.stderr
    assert "llavacot_mlx.cli.commands." not in done.stderr
