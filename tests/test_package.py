"""The installed package: what is in it, what it needs, and the README's example with it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cellseg
from tests.barred import bar

PROJECT = Path(__file__).resolve().parents[1]
# What is not needed for predictions.
OPTIONAL = ("detectron2", "jinja2", "matplotlib", "tensorboard", "timm")


def pip(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the package is installed into, without what it needs."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"  # not the checkout, where setuptools would leave its files
    for name in ("cellseg", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    pip("install", "--no-index", "--no-deps", "--target", folder / "installed", wheel)
    return folder / "installed"


@pytest.fixture(scope="module")
def distribution(installed):
    (found,) = metadata.distributions(path=[str(installed)])
    return found


@pytest.fixture(scope="module")
def python(installed, tmp_path_factory):
    """Call this to run code with the installed package, and what of the rest is not barred."""
    folders = {
        names: bar(tmp_path_factory.mktemp("barred"), *names) for names in (OPTIONAL, ("nothing",))
    }

    def run(code, folder, barred=OPTIONAL):
        paths = map(str, (installed, folders[barred]))
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def files(folder):
    every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in every if "__pycache__" not in path.parts}


def test_the_package_is_installed_with_all_its_files_and_the_recipes(installed, distribution):
    recipes = {"configs" / path for path in files(PROJECT / "configs")}
    assert files(installed / "cellseg") == files(PROJECT / "cellseg") | recipes
    assert distribution.metadata["Name"] == "he-cellseg"
    assert distribution.version == cellseg.__version__


def test_recipes_are_found_in_an_installed_package(python, tmp_path):
    code = """
from cellseg import config
print(config.load_recipe("small_fpn", "torchvision").RECIPE, *config.recipe_names())
"""
    there = sorted(path.stem for path in (PROJECT / "configs").glob("*.yaml"))
    assert python(code, tmp_path).split() == ["small_fpn", *there]


def test_the_package_is_quick_to_import(python, tmp_path):
    code = """
import sys, cellseg
assert cellseg.__version__ in cellseg.__dict__.values()
assert not {"torch", "numpy", "cv2"} & sys.modules.keys()
print(*dir(cellseg))
from cellseg import InputError, Predictions, load_annotations
assert "torch" not in sys.modules
from cellseg import Predictor, runs
try:
    cellseg.nothing
except AttributeError as error:
    print(error)
"""
    exported, error = python(code, tmp_path).splitlines()
    assert exported.split() == sorted(cellseg.__all__)
    assert error == "module 'cellseg' has no attribute 'nothing'"


@pytest.mark.parametrize("threshold", [0.5, 0.0])  # with which an untrained network finds none, any
def test_the_readmes_example(threshold, run, engine, cells, python, tmp_path):
    (code,) = re.findall(
        r"(?m)^    from cellseg import Predictor\n(?:(?:    .*)?\n)+",
        (PROJECT / "README.md").read_text(encoding="utf-8"),
    )
    example = textwrap.dedent(code)
    (named,) = re.findall(r'of_run\("(.+?)"\)', example)
    (tmp_path / named).parent.mkdir(parents=True)
    (tmp_path / named).symlink_to(run)
    shutil.copy(next(cells.glob("test_release/*.tif")), tmp_path / "image.tif")
    assert "score_threshold=0.5" in example
    example = example.replace("score_threshold=0.5", f"score_threshold={threshold}")
    barred = ("nothing",) if engine == "detectron2" else OPTIONAL
    said = python(example, tmp_path, barred).splitlines()
    found = re.fullmatch(r"Predictions\((\d+) cells? in \d+ x \d+ px(: .+)?\)", said[0])
    assert found
    assert int(found[1]) == len(said) - 1
    assert (found[1] == "0") == (threshold == 0.5)
    assert all(re.match(r"class[1-4] 0\.\d+ \[", line) for line in said[1:])


# --- what is declared


def third_party(folder):
    """Name the packages that the modules of a folder import, as the package index does."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    names -= {*sys.stdlib_module_names, "cellseg", "detectron2"}
    index = metadata.packages_distributions()
    return {canonicalize_name(index.get(name, [name])[0]) for name in names}


@pytest.fixture
def requirements(distribution):
    """What the package needs, by the extra that brings it; "" is what it always needs."""
    by_extra = defaultdict(list)
    for text in distribution.requires:
        requirement = Requirement(text)
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker))
        by_extra[extra[1] if extra else ""].append(requirement)
    return by_extra


def names(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(name):
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    texts = (line.partition("#")[0].strip() for line in lines)
    pinned = map(Requirement, filter(None, texts))
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pinned}


def test_every_package_that_is_imported_is_declared(requirements):
    imported = third_party(PROJECT / "cellseg")
    needed, reports = names(requirements[""]), names(requirements["report"])
    assert needed <= imported <= needed | reports


@pytest.mark.parametrize(
    ("extras", "file"),
    [(["", "train", "report", "timm"], "requirements.txt"), (["test"], "requirements-dev.txt")],
)
def test_the_pins_are_within_what_the_package_needs(requirements, extras, file):
    pinned = pins(file)
    for requirement in (r for extra in extras for r in requirements[extra]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_every_tool_of_the_tests_is_in_their_extra(requirements):
    assert names(requirements["test"]) == set(pins("requirements-dev.txt"))
