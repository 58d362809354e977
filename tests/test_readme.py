"""What the README promises of itself."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_annotated_tree_names_what_is_there() -> None:
    """Every path in the tree exists."""
    (tree,) = re.findall(r"^```\n(llavacot_mlx/\n.*?)^```", README, re.DOTALL | re.MULTILINE)
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        for name in line.split("  ")[depth].strip().split(", "):
            path = Path(*folders, name)
            assert (ROOT / path).exists(), f"the tree names {path}, which is not there"
        if name.endswith("/"):
            folders.append(name)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
