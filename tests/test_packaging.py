"""What is installed is what is in the repository, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import llavacot_mlx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_the_tree() -> set[str]:
    """Every folder with an `__init__.py` that is to be installed, by its import name."""
    tops = {"llavacot_mlx": "llavacot_mlx", "cli": "llavacot_mlx.cli"}
    tops["convert"] = "llavacot_mlx.convert"
    found = set()
    for top, name in tops.items():
        for init in (ROOT / top).rglob("__init__.py"):  # which follows no links
            below = init.parent.relative_to(ROOT / top).parts
            found.add(".".join((name, *below)))
    return found


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    """A folder that is not in the list is missing from the wheel, and only there."""
    assert set(project["tool"]["setuptools"]["packages"]) == packages_in_the_tree()


def test_every_module_is_in_a_package() -> None:
    """A folder with modules and no `__init__.py` would not be installed."""
    for top in ("llavacot_mlx", "cli", "convert"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def test_the_links_for_in_tree_runs() -> None:
    """The folders at the top are seen inside the package, by links that a copy keeps."""
    for name in ("cli", "convert"):
        link = ROOT / "llavacot_mlx" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_package_data_is_there(project: dict[str, Any]) -> None:
    """Each pattern matches something: a pattern that matches nothing is dropped without a word."""
    data = project["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns:
            if package == "llavacot_mlx.demo" and not (folder / "model").is_dir():
                pytest.skip("the demo model is not in this tree")
            assert list(folder.glob(pattern)), f"{package}: {pattern}"


def test_the_version_is_one(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == llavacot_mlx.__version__


HEAVY = ("mlx", "transformers", "torch", "numpy", "PIL", "tokenizers", "rich", "typer")


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after `statement`."""
    code = (
        f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(run.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_else() -> None:
    assert imported_by("import llavacot_mlx; llavacot_mlx.__version__").isdisjoint(HEAVY)


def test_stages_events_and_trace_are_pure_python() -> None:
    """A server or a notebook that only shows answers needs no engine."""
    statement = "import llavacot_mlx.events, llavacot_mlx.trace, llavacot_mlx.stages"
    assert imported_by(statement).isdisjoint(HEAVY)


def test_the_engine_imports_no_terminal_and_no_other_framework() -> None:
    """On its way to the first token it needs neither torch nor transformers nor the peers."""
    names = imported_by("from llavacot_mlx import Assistant; import llavacot_mlx.convert.run")
    unwanted = ("torch", "transformers", "mlx_lm", "mlx_vlm", "rich", "typer", "huggingface_hub")
    assert names.isdisjoint(unwanted)
    assert "mlx" in names
