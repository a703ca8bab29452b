"""No tensor of the CPU meets one of a GPU, as far as a pretended GPU can tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

SCRIPT = Path(__file__).with_name("pretended_gpu.py")


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch can't be given a device in Python",
)
def test_training_and_prediction_on_a_pretended_gpu(run, tmp_path):
    # In a process of its own, since torch never forgets a device.
    words = [sys.executable, SCRIPT, run, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
