"""What several test files start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the picture `example.png`, and with `demo`, a model for the fake engine."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "example.png")
    return tmp_path
