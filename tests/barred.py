"""Run Python as if some packages were not installed."""

from __future__ import annotations

from pathlib import Path

# Python imports this module first if it is on PYTHONPATH.
_SITECUSTOMIZE = """\
import sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {names}:
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=name)

sys.meta_path.insert(0, Barred())
"""


def bar(folder: Path, *names: str) -> Path:
    """Write to `folder` a module that blocks packages; return the folder, for PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(names=names))
    return folder
