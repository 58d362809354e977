"""A fast BLAS for MLX on Linux, where its wheel brings the reference one."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

_SYSTEM = "libopenblas.so.0"
# OpenCV's wheel, which mlx-vlm needs, brings an OpenBLAS whose names are the plain ones; those of
# NumPy's and SciPy's have a prefix of their own.
_BUNDLED = "opencv_python*.libs/libopenblas*.so*"
_NEEDED = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")


def load_fast_blas() -> str | None:
    """Loads OpenBLAS, for MLX to be linked to when it is imported; returns what was loaded.

    The linker takes the first of all libraries that were loaded for everyone and have the name
    (ld.so(8), dlopen(3) on RTLD_GLOBAL). Products of float32 matrices are 10 to 20 times faster
    with it. None where there is nothing to do (a Mac) and where no OpenBLAS was found. To be called
    before MLX is imported: afterwards it has no effect.
    """
    if not sys.platform.startswith("linux"):
        return None
    for name in [_SYSTEM, *_bundled()]:
        try:
            library = ctypes.CDLL(name)
            if all(hasattr(library, symbol) for symbol in _NEEDED):
                ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
                return name
        except OSError:
            continue
    return None


def _bundled() -> list[str]:
    spec = find_spec("mlx")
    places = spec.submodule_search_locations if spec else None
    return [str(file) for place in places or () for file in Path(place).parent.glob(_BUNDLED)]
