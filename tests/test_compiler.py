"""Imports without torch's compiler, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from cellseg.device import detectron2_problem


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_the_engines_leave_the_compiler_out(engine):
    """It is there as soon as it is wanted, and torchvision finds it then."""
    if engine == "detectron2" and detectron2_problem():
        pytest.skip("needs Detectron2")
    run(f"""
        import sys
        import cellseg.network.{engine}
        assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
        roi_align = sys.modules["torchvision.ops.roi_align"]
        assert roi_align.is_compile_supported("cpu") in (True, False)
        import torch
        assert torch.compiler.is_compiling() is False
        assert torch.compiler.disable(len) is not None
        assert sys.modules["torch._dynamo"].__file__ == torch._dynamo.__file__
    """)


def test_a_compiler_that_is_there_stays():
    run("""
        import sys
        import torch._dynamo
        from cellseg.compiler import without_compiler
        with without_compiler():
            assert sys.modules["torch._dynamo"].__file__
        assert sys.modules["torch._dynamo"].__file__
    """)


def test_an_error_in_the_block_leaves_no_placeholder():
    run("""
        import sys
        from cellseg.compiler import without_compiler
        try:
            with without_compiler():
                raise ImportError
        except ImportError:
            pass
        assert "torch._dynamo" not in sys.modules
    """)
