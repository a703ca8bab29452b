"""Check the installation and print what to do about missing parts: `make doctor`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cellseg import process
from cellseg.device import detectron2_problem
from cellseg.errors import InputError
from cellseg.runs import package_versions
from cellseg.text import first_line


@dataclass(frozen=True)
class Check:
    """Result of one check, and what to do if it failed."""

    name: str
    ok: bool
    remedy: str = ""
    needed: bool = True


_OPTIONAL = {
    "simplejpeg": "without it most damaged JPEGs are not noticed: run make setup",
    "timm": "lite_fpn, small_fpn and ConvNeXt V2 need it: run make setup",
    "distributed": "--workers and --scheduler need it: run make setup",
    "jinja2": "report.py needs it: run make setup",
    "matplotlib": "report.py needs it: run make setup",
    "pyarrow": "tables of cells need it: run make setup",
    "anndata": "export.py --h5ad needs it: pip install anndata",
}


def run_checks() -> Iterator[Check]:
    """Check Python, the packages, the compiled operators, CUDA and the compiler."""
    yield Check(
        f"Python {platform.python_version()}",
        (3, 10) <= sys.version_info[:2] <= (3, 14),
        "3.10 to 3.14 is needed: make distclean, then make setup PYTHON=python3.11",
    )
    versions = package_versions()
    for package, version in versions.items():
        if package not in ("python", "detectron2"):
            yield Check(f"{package} {version}", version != "missing", "run make setup")
    for package, use in _OPTIONAL.items():
        ok = importlib.util.find_spec(package) is not None
        yield Check(f"{package}{'' if ok else ' missing'}", ok, use, needed=False)
    yield _torchvision()
    yield Check(
        f"detectron2 {versions['detectron2']}: "
        + (detectron2_problem() or "its compiled operators load"),
        not detectron2_problem(),
        "all but cascades and training in several processes runs on torchvision without it; to "
        "install it: make setup, or without a network make setup "
        "DETECTRON2=/path/to/clone-or-wheel; if it "
        "was built against another torch: make distclean, make setup",
        needed=bool(os.environ.get("CI")),
    )
    yield _cuda()
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    yield Check(
        f"C++ compiler {compiler or 'missing'}",
        compiler is not None,
        "only needed to build Detectron2 (on Debian or Ubuntu: apt install g++ python3-dev)",
        needed=False,
    )


def _torchvision() -> Check:
    try:
        from torchvision.ops import nms  # noqa: F401
    except Exception as error:  # noqa: BLE001 a broken binary may raise anything
        return Check(
            f"torchvision's compiled operators: {first_line(error)}",
            False,
            "torch and torchvision must be built for each other, as in requirements.txt: "
            "make distclean, make setup",
        )
    return Check("torchvision's compiled operators load", True)


def _cuda() -> Check:
    result, ok = "no GPU that torch can use", False
    remedy = (
        "real training needs a GPU (NVIDIA, with a driver for this torch: see nvidia-smi); the "
        "demo and small runs work without"
    )
    try:
        import torch

        if torch.cuda.is_available():
            gpu, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
            memory = f"{gpu.total_memory / 2**30:.0f} GiB"
            result = f"{torch.version.cuda}, {count} x {gpu.name}, {memory}"
            ok = _built_with_cuda()
            if not ok:
                result += ", but Detectron2 was built without CUDA"
                remedy = (
                    "the recipes run on the GPU nevertheless; for deformable convolutions and "
                    f"rotated boxes, with nvcc of CUDA {torch.version.cuda} on the PATH: make "
                    "distclean, FORCE_CUDA=1 make setup"
                )
    except Exception as error:  # noqa: BLE001 a broken binary may raise anything
        result, ok = str(error), False
    return Check(f"CUDA: {result}", ok, remedy, needed=False)


def _built_with_cuda() -> bool:
    try:
        return bool(importlib.import_module("detectron2._C").has_cuda())
    except ImportError:
        return True  # reported by another check


def main(argv: Sequence[str] | None = None) -> int:
    """Print all checks. Return 0 if everything needed is installed, else 2."""
    argparse.ArgumentParser("python -m cellseg.doctor", description=__doc__).parse_args(argv)
    all_needed_ok = True
    for check in run_checks():
        print(f"{'ok ' if check.ok else 'NO ' if check.needed else '-  '} {check.name}")
        if not check.ok:
            print(f"     {check.remedy}")
            all_needed_ok &= not check.needed
    print("everything needed is installed" if all_needed_ok else "required parts are missing")
    return 0 if all_needed_ok else 2


if __name__ == "__main__":
    process.prepare()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # after --help too
    except InputError as error:  # of an output that can't be written
        process.say(f"{process.command_name()}: error: {error}")
        code = 2
    sys.exit(code)
