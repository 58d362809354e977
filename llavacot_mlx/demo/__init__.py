"""Paths of the demo model and of its example pictures, which are part of the package."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """The folder of the demo model, an MLX folder that `Assistant.load` opens."""
    return _HERE / "model"


def is_packaged(folder: Path) -> bool:
    """Whether a folder is the demo model's own, or lies in the installed package beside it."""
    return folder.expanduser().resolve().is_relative_to(_HERE)


def example_path(name: str = "square") -> Path:
    """An example picture of the little world: `square`, `busy`, `wide` or `tall`.

    Raises FileNotFoundError, which lists the names, for any other name.
    """
    path = _HERE / "examples" / f"{name}.png"
    if not path.is_file():
        names = ", ".join(sorted(other.stem for other in path.parent.glob("*.png")))
        raise FileNotFoundError(f"no example picture {name!r}; there are: {names}")
    return path
