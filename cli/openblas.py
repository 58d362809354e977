"""Loads a fast BLAS for MLX on Linux, where its wheel ships the reference implementation."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

_SYSTEM = "libopenblas.so.0"
# OpenCV's wheel, which mlx-vlm needs, ships an OpenBLAS with the standard symbol names. The ones
# in NumPy's and SciPy's wheels prefix their symbols.
_BUNDLED = "opencv_python*.libs/libopenblas*.so*"
_NEEDED = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")


def load_fast_blas() -> str | None:
    """Loads OpenBLAS, so that MLX links to it when imported, and returns the library's name.

    The dynamic linker takes a symbol from the first library that was loaded globally (ld.so(8),
    dlopen(3) on RTLD_GLOBAL). Products of float32 matrices are 10 to 20 times faster with it.

    Returns None on a system other than Linux, and if no OpenBLAS was found. Call it before MLX is
    imported: afterwards it has no effect.
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
    folders = spec.submodule_search_locations if spec else None
    return [str(file) for folder in folders or () for file in Path(folder).parent.glob(_BUNDLED)]
