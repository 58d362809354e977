"""What the documents promise of themselves."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
]
OURS = [file for file in DOCUMENTS if "recipes" not in file.parts]
MARKER = "<!-- ci: tests -->\n"


def anchors(document: Path) -> set[str]:
    """The names that links can give the document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("document", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    """By their path in the repository; a recipe's page names the files beside it."""
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|md|yaml|json|txt|j2|css))`", text):
        assert (ROOT / name).exists(), name


def test_measurements_name_results_that_exist() -> None:
    """And every result is in a document: a figure that nobody reads is not kept."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    results = {file.name for file in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert set(re.findall(r"`(\w+\.json)`", text)) == results


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_the_first_two_commands_are_one_line_each() -> None:
    """They are pasted as they are, by somebody who has nothing installed yet."""
    user, developer = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[:2]
    for command, words in ((user, "pip install . &&"), (developer, "pip install -e '.[test]' &&")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && . .venv/bin/activate && ")
        assert words in command
    assert README.count(MARKER) == 1
    assert f"{MARKER}```sh\n{developer}```" in README


@pytest.mark.processes
@pytest.mark.parametrize("readme", ["", f"{MARKER}\n```sh\ntrue\n```\n", "```sh\ntrue\n```\n"])
def test_ci_says_so_when_it_does_not_find_the_test_command(readme: str, tmp_path: Path) -> None:
    """It counted code blocks, and ran another one when a block was added above."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "README.md").write_text(readme)
    run = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    assert "README.md has no code block" in run.stderr
    assert not (tmp_path / ".venv").exists()
