"""The documentation: commands parse, links and named files exist, the recipes are complete."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import utils
from cellseg import config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *ROOT.glob("docs/*.md"),
    *(ROOT / folder / "README.md" for folder in ("nycu-hw3-data", "tensorboard")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = [
    (page, name, arguments.strip())
    for page, text in TEXTS.items()
    for name, arguments in re.findall(r"(?m)(?:^ +|`)python (\w+)\.py\b([^\n#`]*)", text)
]


def test_the_readme_has_all_steps():
    names = {name for page, name, _ in COMMANDS if page == "README.md"}
    assert {"annotation", "train", "inference", "evaluate", "report"} <= names


class Parsed(Exception):
    pass


@pytest.mark.parametrize(("_page", "name", "arguments"), COMMANDS)
def test_every_command_parses(_page, name, arguments, monkeypatch):
    """Run each command until its arguments are parsed."""
    parse_args = utils.CommandParser.parse_args
    parsed = []

    def stop(self, *positional, **keywords):
        parsed.append(parse_args(self, *positional, **keywords))
        raise Parsed

    monkeypatch.setattr(utils.CommandParser, "parse_args", stop)
    with pytest.raises(Parsed):
        importlib.import_module(name).main(shlex.split(arguments))
    model = getattr(parsed[0], "model", None)
    assert model is None or model in config.recipe_names()
    options = getattr(parsed[0], "options", [])
    config.merge_options(config.default_config("torchvision"), options)


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_named_files_exist(page):
    text, folder = TEXTS[page], (ROOT / page).parent
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    files = (
        [] if page == "CHANGELOG.md" else re.findall(r"`((?:bench|cellseg|tests)/[\w/.]+)", text)
    )
    missing = [link for link in links if not (folder / link).exists()]
    assert missing + [file for file in files if not (ROOT / file).exists()] == []


def test_the_readme_lists_every_recipe_and_command():
    rows = re.findall(r"(?m)^\| `([\w.]+)`", TEXTS["README.md"])
    scripts = {"trainer.py", "utils.py", "demo.py"}
    commands = {path.name for path in ROOT.glob("*.py")} - scripts
    assert {*config.recipe_names(), *commands} <= set(rows)


def test_the_commands_of_make_exist():
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    named = {n for text in TEXTS.values() for n in re.findall(r"(?m)(?:^ +|`)make ([a-z]+)", text)}
    assert {"setup", "test", "demo", "doctor"} <= named <= set(targets)


def test_the_architecture_names_the_modules_that_read():
    section = TEXTS["docs/architecture.md"].partition("## Modules of `cellseg/read`")[2]
    named = re.findall(r"`(\w+)`", section.partition("\n## ")[0])
    modules = {path.stem for path in (ROOT / "cellseg" / "read").glob("[!_]*.py")}
    assert sorted(named) == sorted(modules)
