"""Helpers for tests that start processes."""

from __future__ import annotations

import os
import signal
import time

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def default_signals():
    """Listen to Ctrl-C, which a job in the background of a script would ignore."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


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
