"""Says what the installation has, what is missing, and what to do about it: `make doctor`."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cellseg.device import detectron2_problem
from cellseg.runs import package_versions


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is good, and if not, what to do."""

    name: str
    ok: bool
    remedy: str = ""
    needed: bool = True


def run_checks() -> Iterator[Check]:
    """Look at Python, the packages, the compiled operators and CUDA."""
    version = sys.version_info[:2]
    yield Check(
        f"Python {platform.python_version()}",
        (3, 10) <= version <= (3, 12),
        "3.10, 3.11 or 3.12 is needed: make distclean, then make setup PYTHON=python3.11",
    )
    for package, found in package_versions().items():
        if package not in ("python", "detectron2"):
            yield Check(f"{package} {found}", found != "missing", "run make setup")
    yield _torchvision()
    yield _detectron2(package_versions()["detectron2"])
    yield _cuda()
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    yield Check(
        f"C++ compiler {compiler or 'missing'}",
        compiler is not None,
        "only needed to build Detectron2 (on Debian or Ubuntu: apt install g++ python3-dev)",
        needed=False,
    )


def _detectron2(version: str) -> Check:
    """Whether Detectron2 can be used; where it can't, there is the torchvision engine."""
    problem = detectron2_problem()
    return Check(
        f"detectron2 {version}: " + (problem or "its compiled operators load"),
        not problem,
        "all but cascades and several processes runs on torchvision without it; to have it: make "
        "setup, or without a network make setup DETECTRON2=/path/to/clone-or-wheel; if it was "
        "built against another torch: make distclean, make setup",
        needed=bool(os.environ.get("CI")),
    )


def _torchvision() -> Check:
    """Whether torchvision's compiled operators load."""
    try:
        from torchvision.ops import nms  # noqa: F401
    except Exception as error:  # noqa: BLE001 a broken binary may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check(
            f"torchvision's compiled operators: {reason}",
            False,
            "torch and torchvision must be a pair that was built together, as the one in "
            "requirements.txt is: make distclean, make setup",
        )
    return Check("torchvision's compiled operators load", True)


def _cuda() -> Check:
    remedy = (
        "training needs a GPU in earnest (NVIDIA, with a driver that suits this torch: "
        "nvidia-smi says); the demo and small runs work without"
    )
    try:
        import torch

        if torch.cuda.is_available():
            capability = torch.cuda.get_device_properties(0)
            memory = capability.total_memory / 2**30
            if not _built_with_cuda():
                return Check(
                    f"CUDA: {capability.name} is there, but Detectron2 was built without CUDA",
                    False,
                    "the recipes run on the GPU all the same; for its deformable convolutions and "
                    f"rotated boxes, with nvcc of CUDA {torch.version.cuda} on the PATH: make "
                    "distclean, FORCE_CUDA=1 make setup",
                    needed=False,
                )
            return Check(
                f"CUDA {torch.version.cuda}: {torch.cuda.device_count()} x {capability.name}, "
                f"{memory:.0f} GiB",
                True,
            )
        return Check("CUDA: no GPU that torch can use", False, remedy, needed=False)
    except Exception as error:  # noqa: BLE001 a broken binary may raise anything
        return Check(f"CUDA: {error}", False, remedy, needed=False)


def _built_with_cuda() -> bool:
    try:
        return bool(importlib.import_module("detectron2._C").has_cuda())
    except ImportError:
        return True  # said before


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; 0 if all that is needed is there, else 2."""
    argparse.ArgumentParser("python -m cellseg.doctor", description=__doc__).parse_args(argv)
    all_needed_ok = True
    for finding in run_checks():
        mark = "ok " if finding.ok else "NO " if finding.needed else "-  "
        print(f"{mark} {finding.name}")
        if not finding.ok:
            print(f"     {finding.remedy}")
            all_needed_ok &= not finding.needed
    print(
        "all that is needed is there" if all_needed_ok else "not everything that is needed is there"
    )
    return 0 if all_needed_ok else 2


if __name__ == "__main__":
    sys.exit(main())
