"""Helpers for tests that start processes."""

from __future__ import annotations

import os
import time


def is_gone(group):
    """Return whether no process of a group is left, within some seconds."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
