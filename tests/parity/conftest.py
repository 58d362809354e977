"""Checkpoints and oracles that the parity tests share, each written and opened once a session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import transformers
from parity.checkpoints import Geometry, write_checkpoint
from parity.oracle import Oracle

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Geometry], Path]:
    """`checkpoint(geometry)`: a folder as `save_pretrained` writes it, to be read only."""

    @cache
    def written(geometry: Geometry) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("hf"), geometry)

    return written


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[[Geometry], Path]) -> Callable[[Geometry], Oracle]:
    """`oracle(geometry)`: transformers with the same folder open."""

    @cache
    def opened(geometry: Geometry) -> Oracle:
        return Oracle.open(checkpoint(geometry))

    return opened
