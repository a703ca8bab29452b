"""torch's compiler: its import takes as long as torch's, and prediction does not use it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision, Detectron2 or timm without the compiler, which their imports ask for.

    torchvision imports a function from it; the others mark functions as not to be compiled. An
    import of the compiler after the block works as usual, but functions marked in the block are not
    known to it. Without effect if it is imported already.
    """
    if _COMPILER in sys.modules:
        yield
        return
    compiler, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    compiler.disable = _leave  # type: ignore[attr-defined]
    compiler.utils = utils  # type: ignore[attr-defined]
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    placeholders = {module.__name__: module for module in (compiler, utils)}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name, module in placeholders.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _leave(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return the function, or a decorator that does."""
    return _leave if function is None else function


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    supported: Callable[[str], bool] = is_compile_supported
    return supported(device_type)
