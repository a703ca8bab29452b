"""Flags of demo.py; `make demo` runs it to the end."""

from __future__ import annotations

import pytest

import demo
from cellseg.errors import InputError


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_invalid_seed(tmp_path, seed):
    with pytest.raises(InputError, match=f"--seed: '{seed}' .* 0 or more"):
        demo.main(["--seed", seed, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())
