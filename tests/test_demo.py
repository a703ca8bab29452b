"""demo.py: what it refuses; that it goes through, `make demo` shows."""

from __future__ import annotations

import pytest

import demo
from cellseg.errors import InputError


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_a_seed_that_is_none(tmp_path, seed):
    with pytest.raises(InputError, match=f"--seed: '{seed}' is not a whole number of 0 or more"):
        demo.main(["--seed", seed, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())
