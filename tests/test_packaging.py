"""The package as it is declared, built and installed."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import llavacot_mlx

ROOT = Path(__file__).parents[1]
INSTALLED = {"llavacot_mlx": "llavacot_mlx", "cli": "llavacot_mlx/cli"}
INSTALLED["convert"] = "llavacot_mlx/convert"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked_files() -> list[Path]:
    """The files of the repository, relative to its root. Skips the test outside a clone."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this tree is not a git repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    return [name for name in names if os.path.lexists(ROOT / name)]


def installed_files(files: Iterable[Path]) -> dict[str, Path]:
    """Every file of the three folders that are installed, by its path in the wheel."""
    return {
        "/".join((INSTALLED[file.parts[0]], *file.parts[1:])): file
        for file in files
        if file.parts[0] in INSTALLED and not (ROOT / file).is_symlink()
    }


def test_every_module_is_in_a_package() -> None:
    """A folder with modules and no `__init__.py` would not be installed."""
    for top in INSTALLED:
        for module in (ROOT / top).rglob("*.py"):  # which follows no links
            assert (module.parent / "__init__.py").is_file(), module


def test_the_links_for_in_tree_runs() -> None:
    """The folders at the top are seen inside the package, by links that a copy keeps."""
    for name in ("cli", "convert"):
        link = ROOT / "llavacot_mlx" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


@pytest.mark.processes
def test_package_data_is_what_is_there(project: dict[str, Any]) -> None:
    """Each file that is no module has a pattern, and each pattern a file.

    The wheel leaves out the one and ignores the other without a word.
    """
    data = project["tool"]["setuptools"]["package-data"]
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in data.items()
        for pattern in patterns
    ]
    files = [name for name in installed_files(tracked_files()) if not name.endswith(".py")]
    for name in files:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
    for pattern in patterns:
        assert fnmatch.filter(files, pattern), pattern


def test_the_version_is_one(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == llavacot_mlx.__version__


# --- What is imported is declared ---

DISTRIBUTIONS = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "mlx_lm": "mlx-lm",
    "mlx_vlm": "mlx-vlm",
    "pillow_heif": "pillow-heif",
    "yaml": "pyyaml",
}
# Which extras serve which folder, beside the dependencies that everybody gets.
EXTRAS = {
    "llavacot_mlx": {"heic", "plots"},
    "cli": set(),
    "convert": set(),
    "docs": set(),
    "benchmarks": {"test"},
    "recipes": {"recipes"},
    "tests": {"test", "heic"},
}
# Programs and plugins, and what builds the package, which nobody imports.
RUN_NOT_IMPORTED = {"mypy", "pytest-xdist", "ruff", "setuptools"}


@lru_cache
def imported_distributions(folder: str) -> dict[str, str]:
    """Each distribution that a folder's modules import, with a line that does."""
    files = list((ROOT / folder).rglob("*.py"))
    # Recipes are folders of scripts, which import each other by their bare names, as tests do.
    scripts = [*files, *(ROOT / "recipes").rglob("*.py")]
    own = {*INSTALLED, *EXTRAS, *(file.stem for file in scripts)}
    own |= {file.parent.name for file in files}
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            for top in {module.partition(".")[0] for module in modules}:
                if top in DISTRIBUTIONS or top not in own | sys.stdlib_module_names:
                    where = f"{file.relative_to(ROOT)}:{node.lineno}"
                    found[DISTRIBUTIONS.get(top, top)] = where
    return found


def declared(project: dict[str, Any], extras: Iterable[str]) -> set[str]:
    """The distributions that `pip install '.[extras]'` names, extras of extras included."""
    optional = project["project"]["optional-dependencies"]
    names = set()
    queue = [*project["project"]["dependencies"]]
    for extra in extras:
        queue += optional[extra]
    while queue:
        requirement = queue.pop()
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[([^\]]*)\])?", requirement)
        assert match, requirement
        if match[1] == project["project"]["name"]:
            for extra in match[2].split(","):
                queue += optional[extra.strip()]
        else:
            names.add(match[1])
    return names


@pytest.mark.parametrize("folder", EXTRAS)
def test_everything_imported_is_declared(folder: str, project: dict[str, Any]) -> None:
    """tqdm was imported and came along by the kindness of another package."""
    known = declared(project, EXTRAS[folder])
    missing = {
        name: where for name, where in imported_distributions(folder).items() if name not in known
    }
    assert not missing


def test_everything_declared_is_imported(project: dict[str, Any]) -> None:
    every = declared(project, project["project"]["optional-dependencies"])
    imported = {name for folder in EXTRAS for name in imported_distributions(folder)}
    assert every - imported == RUN_NOT_IMPORTED


def test_the_lower_bounds_are_the_tested_versions(project: dict[str, Any]) -> None:
    """Every requirement has one, and it is the version that CI installs by `.ci/lowest.txt`."""
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    optional = project["project"]["optional-dependencies"]
    bounds = {}
    for requirement in chain(project["project"]["dependencies"], *optional.values()):
        match = re.match(r"([a-z0-9-]+)(?:\[\w+\])?(?:>=|==)([0-9.]+)", requirement)
        if not requirement.startswith(f"{project['project']['name']}["):
            assert match, requirement
            bounds[match[1]] = match[2]
    for tool in ("mypy", "ruff"):  # they check the code and do not run it
        del bounds[tool]
    assert tested.keys() == bounds.keys()
    for name, version in tested.items():
        assert f"{version}.".startswith(f"{bounds[name]}."), name


# --- What is loaded when ---

HEAVY = ("mlx", "transformers", "torch", "numpy", "PIL", "tokenizers", "rich", "typer")
# They serve judges, reports and the hub; an answer of a model on the disk needs none of them.
NOT_FOR_AN_ANSWER = ("torch", "transformers", "mlx_lm", "mlx_vlm", "huggingface_hub")


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after `statement`."""
    code = (
        f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.processes
def test_importing_the_package_imports_nothing_else() -> None:
    assert imported_by("import llavacot_mlx; llavacot_mlx.__version__").isdisjoint(HEAVY)


@pytest.mark.processes
def test_stages_events_and_trace_are_pure_python() -> None:
    """A server or a notebook that only shows answers needs no engine."""
    statement = (
        "import llavacot_mlx.trace.events, llavacot_mlx.trace.record, llavacot_mlx.prompt.stages"
    )
    assert imported_by(statement).isdisjoint(HEAVY)


@pytest.mark.processes
def test_the_engine_imports_no_terminal_and_no_other_framework() -> None:
    """On its way to the first token it needs neither torch nor transformers nor the peers."""
    names = imported_by("from llavacot_mlx import Assistant; import llavacot_mlx.convert.convert")
    assert names.isdisjoint({*NOT_FOR_AN_ANSWER, "rich", "typer"})
    assert "mlx" in names


@pytest.mark.processes
@pytest.mark.parametrize("flags", [(), ("--search", "swires", "--seed", "1")])
def test_a_whole_answer_imports_no_other_framework(flags: tuple[str, ...]) -> None:
    """From the command to its last line, a search and its judge included."""
    example = ROOT / "llavacot_mlx" / "demo" / "examples" / "square.png"
    words = ["llavacot", "ask", str(example), "How many red shapes are there?", *flags]
    names = imported_by(
        f"import sys\nsys.argv = {words!r}\nfrom llavacot_mlx.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as left:\n    assert not left.code, left.code"
    )
    assert names.isdisjoint(NOT_FOR_AN_ANSWER)
    assert {"mlx", "tokenizers"} <= names


# --- What is built ---


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files in another folder, so that building leaves nothing in this one."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    for file in tracked_files():
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, copy / file, follow_symlinks=False)
    return copy


def build(hook: str, source: Path, out: Path) -> Path:
    """Builds as an installer does, by a hook of PEP 517 or 660, and with what is installed here."""
    code = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, hook, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    (built,) = out.glob("*.whl")
    return built


def contents(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" not in name:
                yield name, archive.read(name)


@pytest.mark.processes
def test_the_wheel_has_the_files_of_the_three_folders_and_no_others(wheel: Path) -> None:
    expected = {
        name: (ROOT / file).read_bytes() for name, file in installed_files(tracked_files()).items()
    }
    assert dict(contents(wheel)) == expected


@pytest.mark.processes
def test_the_source_archive_builds_the_same_wheel(copy: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", copy, tmp_path)) as archive:
        archive.extractall(tmp_path)  # our own archive; Python 3.11.2 has no filter yet
    (source,) = (file for file in tmp_path.iterdir() if file.is_dir())
    assert (source / "LICENSE").is_file()
    (tmp_path / "again").mkdir()
    again = build("build_wheel", source, tmp_path / "again")
    assert again.name == wheel.name
    assert dict(contents(again)) == dict(contents(wheel))


@pytest.mark.processes
def test_the_demo_model_answers_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(site)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(wheel)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    elsewhere = {"env": {**os.environ, "PYTHONPATH": str(site)}, "cwd": tmp_path}
    where = subprocess.run(
        [sys.executable, "-c", "import llavacot_mlx.cli; print(llavacot_mlx.cli.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        **elsewhere,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    example = site / "llavacot_mlx" / "demo" / "examples" / "square.png"
    words = ["ask", str(example), "How many red shapes are there?", "--answer-only"]
    asked = subprocess.run(
        [str(site / "bin" / "llavacot"), *words],
        capture_output=True,
        text=True,
        timeout=120,
        **elsewhere,
    )
    assert (asked.returncode, asked.stdout.strip()) == (0, "2"), asked.stderr


@pytest.mark.processes
@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_type_checker_sees_the_types_of_an_installed_package(
    hook: str, copy: Path, tmp_path: Path
) -> None:
    """As the README's commands install it, for a user's own file outside the repository.

    The editable install was an import hook, which mypy does not run, so every type was Any.
    """
    pytest.importorskip("mypy", reason="mypy is not installed, which '.[dev]' does")
    venv = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60
    )
    (site,) = venv.glob("lib/python*/site-packages")
    with zipfile.ZipFile(build(hook, copy, tmp_path)) as archive:
        archive.extractall(site)
    users = tmp_path / "user"
    users.mkdir()
    (users / "two_lines.py").write_text(
        "from llavacot_mlx import Assistant\nreveal_type(Assistant.load)\n"
    )
    python = str(venv / "bin" / "python")
    # Either path could lead mypy to this repository, installed or not.
    paths = ("MYPYPATH", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if key not in paths}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "two_lines.py"],
        cwd=users,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "-> llavacot_mlx.assistant.Assistant" in checked.stdout, checked.stdout
    assert not checked.returncode
