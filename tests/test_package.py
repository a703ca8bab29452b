"""The installed package: its files, its dependencies, the README's example."""

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
# Not needed for predictions.
OPTIONAL = ("anndata", "detectron2", "jinja2", "matplotlib", "pyarrow", "tensorboard", "timm")


def pip(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, words)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the installed package, without its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"  # since setuptools writes files to it
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
    return next(iter(metadata.distributions(path=[str(installed)])))


@pytest.fixture(scope="module")
def python(installed, tmp_path_factory):
    """Function that runs code with the installed package and without some others."""
    folders = {
        names: bar(tmp_path_factory.mktemp("barred"), *names) for names in (OPTIONAL, ("nothing",))
    }

    def run(code, folder, barred=OPTIONAL):
        paths = map(str, (installed, folders[barred]))
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def files(folder):
    every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in every if "__pycache__" not in path.parts}


def test_all_files_and_recipes_are_installed(installed, distribution):
    recipes = {"configs" / path for path in files(PROJECT / "configs")}
    assert files(installed / "cellseg") == files(PROJECT / "cellseg") | recipes
    assert distribution.metadata["Name"] == "he-cellseg"
    assert distribution.version == cellseg.__version__


def test_recipes_of_the_installed_package(python, tmp_path):
    code = """
from cellseg import config
print(config.load_recipe("small_fpn", "torchvision").RECIPE, *config.recipe_names())
"""
    expected = sorted(path.stem for path in (PROJECT / "configs").glob("*.yaml"))
    assert python(code, tmp_path).split() == ["small_fpn", *expected]


def test_import_without_torch(python, tmp_path):
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


# An untrained network has no detections, or some.
@pytest.mark.parametrize("threshold", [pytest.param(0.5, marks=pytest.mark.one_engine), 0.0])
def test_the_readmes_example(threshold, run, engine, cells, python, tmp_path):
    (code,) = re.findall(
        r"(?m)^    from cellseg import Predictor\n(?:(?:    .*)?\n)+",
        (PROJECT / "README.md").read_text(encoding="utf-8"),
    )
    example = textwrap.dedent(code)
    (named,) = re.findall(r'from_run\("(.+?)"\)', example)
    (tmp_path / named).parent.mkdir(parents=True)
    (tmp_path / named).symlink_to(run)
    shutil.copy(next(cells.glob("test_release/*.tif")), tmp_path / "image.tif")
    assert "score_threshold=0.5" in example
    example = example.replace("score_threshold=0.5", f"score_threshold={threshold}")
    barred = ("nothing",) if engine == "detectron2" else OPTIONAL
    lines = python(example, tmp_path, barred).splitlines()
    shown = re.fullmatch(r"Predictions\((\d+) cells? in \d+ x \d+ px(: .+)?\)", lines[0])
    assert shown
    assert int(shown[1]) == len(lines) - 1
    assert (shown[1] == "0") == (threshold == 0.5)
    assert all(re.match(r"class[1-4] 0\.\d+ \[", line) for line in lines[1:])


# --- dependencies


def third_party(folder):
    """Return the index names of the packages that the modules of a folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    names -= {*sys.stdlib_module_names, "compression", "cellseg", "detectron2"}  # Python 3.14's
    index = metadata.packages_distributions()
    return {canonicalize_name(index.get(name, [name])[0]) for name in names}


@pytest.fixture
def requirements(distribution):
    """Requirements of the package by extra; "" are those without one."""
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
    versions = defaultdict(list)  # several, where they depend on Python's
    for pin in map(Requirement, filter(None, texts)):
        versions[canonicalize_name(pin.name)].append(str(pin.specifier).removeprefix("=="))
    return versions


def test_imported_packages_are_declared(requirements):
    imported = third_party(PROJECT / "cellseg")
    needed = names(requirements[""])
    optional = set().union(*(names(requirements[extra]) for extra in ("report", "table", "h5ad")))
    assert needed - {"openslide-bin"} <= imported <= needed | optional  # openslide loads it


@pytest.mark.parametrize(
    ("extras", "file"),
    [
        (["", "train", "report", "table", "timm"], "requirements.txt"),
        (["test"], "requirements-dev.txt"),
    ],
)
def test_pins_meet_the_requirements(requirements, extras, file):
    pinned = pins(file)
    for requirement in (r for extra in extras for r in requirements[extra]):
        versions = pinned[canonicalize_name(requirement.name)]
        assert versions
        assert all(map(requirement.specifier.contains, versions))


def test_tools_of_the_tests_are_in_their_extra(requirements):
    assert names(requirements["test"]) == set(pins("requirements-dev.txt"))
