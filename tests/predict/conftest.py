"""Fixtures for tests of prediction."""

from __future__ import annotations

import pytest
from distributed import Client


@pytest.fixture(scope="module")
def client():
    """Two workers with two threads each in this process."""
    with Client(
        processes=False, n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0",
        set_as_default=False,
    ) as client:  # fmt: skip
        yield client
