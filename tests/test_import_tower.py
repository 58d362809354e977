"""The tower of imports: which package may import which, stated once, and held by the code."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "llavacot_mlx"

# From the ground up: a room imports what stands in its row, and all of that stands above it in this
# table. A room is a module of the package's root or one of its packages. An arrow that no import
# uses any more fails as well, so the table stays true. `__init__` is the package's face: its
# version, and names that are imported on first use.
TOWER_TABLE = """
__init__
errors
file_kinds
usage
atomic      errors
bounded_read
checked     errors file_kinds bounded_read
model       errors usage
checkpoint  errors file_kinds bounded_read atomic checked model
prompt      errors file_kinds bounded_read checked model
rows        errors file_kinds bounded_read checked prompt
generate    errors usage model prompt
plan        errors checked prompt generate
trace       errors usage bounded_read atomic checked prompt plan
search      errors usage atomic checked model checkpoint prompt rows generate plan trace
request     errors checked model plan
answer      errors usage model prompt generate plan trace search request
batch       errors model prompt generate request trace answer
assistant   errors model generate checkpoint prompt plan trace search request answer batch
demo        prompt search
train       errors atomic checked model checkpoint prompt rows generate plan request answer
evaluate    errors file_kinds atomic checked model checkpoint prompt generate plan trace request
            assistant demo train
convert     __init__ errors atomic checked model checkpoint prompt generate search
cli         __init__ errors bounded_read atomic checked model checkpoint prompt generate plan
            trace search request assistant demo train evaluate convert
__main__    cli
"""
TOWER = {
    room: set(targets)
    for room, *targets in (row.split() for row in re.split(r"\n(?=\S)", TOWER_TABLE.strip()))
}

# Libraries that have one place.
ONLY_IN = {
    "rich": "llavacot_mlx.cli.views",
    "typer": "llavacot_mlx.cli",
    "jinja2": "llavacot_mlx.cli.html",
    "matplotlib": "llavacot_mlx.train.plots",
    "mlx_vlm": "llavacot_mlx.search.judges.vlm_judge",
    "torch": "nowhere",
    "peft": "nowhere",
}


@dataclass(frozen=True)
class Import:
    """An import statement's target, as seen from one module."""

    importer: str
    target: str
    line: int
    at_load: bool
    """False inside a function, or where only a type checker looks."""
    for_types: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; `cli/` and `convert/` are links in it."""
    found = {}
    for folder in (ROOT / PACKAGE, ROOT / "cli", ROOT / "convert"):
        prefix = PACKAGE if folder.name == PACKAGE else f"{PACKAGE}.{folder.name}"
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if folder.name == PACKAGE and parts[0] in ("cli", "convert"):
                continue
            name = ".".join((prefix, *(part for part in parts if part != "__init__")))
            found[name] = file
    return found


MODULES = modules()


def imports_of(name: str) -> Iterator[Import]:
    yield from _imports(name, ast.parse(MODULES[name].read_text()), at_load=True, for_types=False)


def _imports(name: str, tree: ast.AST, *, at_load: bool, for_types: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                target = whole if whole in MODULES else node.module
                yield Import(name, target, node.lineno, at_load, for_types)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, at_load, for_types)
        elif isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from _imports(name, node, at_load=False, for_types=for_types)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imports(name, node, at_load=False, for_types=True)
        else:
            yield from _imports(name, node, at_load=at_load, for_types=for_types)


IMPORTS = [found for name in MODULES for found in imports_of(name)]


def room_of(module: str) -> str:
    """The package below the root that a module is in, or the module itself where it is in none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for each in IMPORTS:
        if each.target in MODULES and not each.for_types:
            importer, target = room_of(each.importer), room_of(each.target)
            if importer != target:
                found[importer].add(target)
    return found


def test_rooms_import_what_the_table_says_and_nothing_else() -> None:
    found = arrows()
    rooms = {room_of(name) for name in MODULES}
    assert rooms == TOWER.keys(), "a room is missing in the table, or has gone"
    assert {room: found[room] for room in TOWER} == TOWER


def test_a_room_imports_only_what_stands_below_it() -> None:
    order = list(TOWER)
    upwards = [
        f"{room} imports {target}"
        for room, targets in TOWER.items()
        for target in targets
        if order.index(target) >= order.index(room)
    ]
    assert not upwards


def test_types_are_taken_from_below_as_well() -> None:
    """An import for annotations alone draws an arrow for whoever reads the code."""
    order = list(TOWER)
    upwards = [
        f"{each.importer}:{each.line} names {each.target}"
        for each in IMPORTS
        if each.target in MODULES
        and order.index(room_of(each.target)) > order.index(room_of(each.importer))
        and room_of(each.importer) != "__init__"
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for each in IMPORTS:
        if each.at_load and each.target in MODULES and each.target != each.importer:
            edges[each.importer].add(each.target)
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            pytest.fail(" → ".join([*path[path.index(name) :], name]))
        if name not in done:
            path.append(name)
            for target in sorted(edges[name]):
                visit(target)
            path.pop()
            done.add(name)

    for name in MODULES:
        visit(name)
    assert done == MODULES.keys()


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_place(library: str) -> None:
    place = ONLY_IN[library]
    elsewhere = [
        f"{each.importer}:{each.line}"
        for each in IMPORTS
        if each.target.partition(".")[0] == library
        and not f"{each.importer}.".startswith(f"{place}.")
    ]
    assert not elsewhere


def test_packages_import_nothing_in_their_init() -> None:
    """Importing a package loads none of its modules; the standard library may be used."""
    assert not [
        f"{each.importer}:{each.line} imports {each.target}"
        for each in IMPORTS
        if MODULES[each.importer].name == "__init__.py"
        and each.importer != PACKAGE
        and each.target.partition(".")[0] not in sys.stdlib_module_names
    ]


def test_the_root_has_few_modules() -> None:
    root = [name for name, file in MODULES.items() if file.parent == ROOT / PACKAGE]
    entry_points = {PACKAGE, f"{PACKAGE}.__main__"}
    assert len(set(root) - entry_points) <= 10, root


def test_names_are_given_once() -> None:
    """Two modules of one name in a room, or two classes of one name, mislead a search."""
    modules_by_room = Counter(
        (room_of(name), name.rpartition(".")[2])
        for name, file in MODULES.items()
        if file.name != "__init__.py"
    )
    assert not [name for name, count in modules_by_room.items() if count > 1]
    classes = Counter(
        node.name
        for file in MODULES.values()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in classes.items() if count > 1]


def test_the_architecture_page_names_every_module_or_its_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    unnamed = [
        name
        for name, file in MODULES.items()
        if file.name != "__init__.py"
        and f"`{_shown(file)}`" not in page
        and f"`{_shown(file.parent)}/`" not in page
    ]
    assert not unnamed


def test_the_architecture_page_names_nothing_that_is_not_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:llavacot_mlx|cli|convert)/[\w/.]*)`", page)
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


def test_what_stands_beside_the_package_imports_what_exists() -> None:
    """Benchmarks and recipes are run by hand, so nothing else would notice a renamed function."""
    missing = []
    for folder in ("benchmarks", "recipes", "docs", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                    assert node.module is not None
                    module = importlib.import_module(node.module)
                    missing += [
                        f"{file.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
                        for alias in node.names
                        if not hasattr(module, alias.name)
                        and f"{node.module}.{alias.name}" not in MODULES
                    ]
    assert not missing
