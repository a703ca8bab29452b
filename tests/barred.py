"""A Python in which some packages can't be imported, as where they are not installed."""

from __future__ import annotations

from pathlib import Path

# Python imports this before all else, where it lies on PYTHONPATH.
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
    """Bar packages from a Python that has the folder, returned, on its PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(names=names))
    return folder
