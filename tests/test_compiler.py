"""Imports without torch's compiler, in processes of their own."""

from __future__ import annotations

import textwrap

import pytest

from cellseg.device import detectron2_problem
from tests.fork_server import forks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs code where of the libraries only torch is loaded."""
    with forks(tmp_path_factory.mktemp("compiler"), ["torch"]) as forked:

        def run(code: str) -> None:
            done = forked("-c", textwrap.dedent(code))
            assert done.returncode == 0, done.stderr

        yield run


@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_the_engines_leave_the_compiler_out(run, engine):
    """Detectron2's convolutions and timm too. It is there when wanted, also for torchvision."""
    if engine == "detectron2" and detectron2_problem():
        pytest.skip("needs Detectron2")
    first_use = {
        "detectron2": "cellseg.network.detectron2.wrappers.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2))",
        "torchvision": "cellseg.network.torchvision.check_name('resnet10t')",
    }
    run(f"""
        import sys
        import torch
        import cellseg.network.{engine}
        {first_use[engine]}
        assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
        roi_align = sys.modules["torchvision.ops.roi_align"]
        assert roi_align.is_compile_supported("cpu") in (True, False)
        assert torch.compiler.is_compiling() is False
        assert torch.compiler.disable(len) is not None
        assert sys.modules["torch._dynamo"].__file__ == torch._dynamo.__file__
    """)


def test_a_compiler_that_is_there_stays(run):
    run("""
        import sys
        import torch._dynamo
        from cellseg.compiler import without_compiler
        with without_compiler():
            assert sys.modules["torch._dynamo"].__file__
        assert sys.modules["torch._dynamo"].__file__
    """)


def test_an_error_in_the_block_leaves_no_placeholder(run):
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
