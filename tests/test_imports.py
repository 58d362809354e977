"""Which module may import which: what stays light, and that nothing runs in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import llavacot_mlx

PACKAGE = Path(llavacot_mlx.__file__).parent


def loaded_by(statement: str) -> set[str]:
    """Every module that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.processes
def test_the_network_does_not_load_the_trace_the_plans_or_a_yaml_parser() -> None:
    loaded = loaded_by("import llavacot_mlx.model.mllama")
    above = {name for name in loaded if name.startswith("llavacot_mlx.") and "trace" in name}
    above |= {name for name in loaded if name.startswith("llavacot_mlx.") and "plan" in name}
    assert "mlx.core" in loaded
    assert above == set()
    assert "yaml" not in loaded


@pytest.mark.processes
@pytest.mark.parametrize(
    "module",
    [
        "trace.events",
        "trace.record",
        "plan.plan",
        "plan.plan_yaml",
        "prompt.stages",
        "generate.sampling_params",
        "usage",
    ],
)
def test_pure_python_modules_do_not_load_mlx(module: str) -> None:
    loaded = loaded_by(f"import llavacot_mlx.{module}")
    assert f"llavacot_mlx.{module}" in loaded
    assert {name for name in loaded if name.partition(".")[0] in ("mlx", "yaml", "rich")} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {name: imported_at_the_top(path) for name, path in modules().items()}
    assert sum(map(len, arrows.values())) > 100
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, `cli` and `convert` included."""
    found = {}
    folders = [path for path in (PACKAGE, *PACKAGE.rglob("*")) if path.is_dir()]
    folders += [PACKAGE / "cli", PACKAGE / "convert"]
    for folder in dict.fromkeys(folders):
        for path in folder.glob("*.py"):
            parts = ("llavacot_mlx", *path.relative_to(PACKAGE).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported_at_the_top(path: Path) -> set[str]:
    """The package's modules that a file imports whenever it is itself imported."""
    known = modules()
    (name,) = (key for key, value in known.items() if value == path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(filter(None, [*(above if node.level else []), node.module or ""]))
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    # The package itself stands above all of its modules; it exports names and is no arrow.
    return found & set(known) - {"llavacot_mlx", name}
