"""Every command that the README shows is one that the program takes."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import utils
from cellseg import config

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""
COMMANDS = re.findall(r"^[ \t]*(?:\$ )?python (\w+)\.py\b([^\n#]*)", TEXT, re.MULTILINE)


def test_the_readme_shows_commands():
    if not README.is_file():
        pytest.skip("there is no README.md")
    assert {"annotation", "train", "inference", "evaluate"} <= {name for name, _ in COMMANDS}


class Parsed(Exception):
    pass


@pytest.mark.parametrize(("name", "rest"), COMMANDS)
def test_every_command_parses(name, rest, monkeypatch):
    """Up to where the command would begin its work."""
    parse_args = utils.CommandParser.parse_args
    seen = []

    def stop(self, *arguments, **keywords):
        seen.append(parse_args(self, *arguments, **keywords))
        raise Parsed

    monkeypatch.setattr(utils.CommandParser, "parse_args", stop)
    command = importlib.import_module(name)
    with pytest.raises(Parsed):
        command.main(shlex.split(rest.rstrip("`").strip()))
    model = getattr(seen[0], "model", None)
    assert model is None or model in config.recipe_names()
    options = getattr(seen[0], "options", [])
    config.merge_options(config.default_config("torchvision"), options)
