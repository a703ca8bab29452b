"""Damaged and hostile files of every kind are read, or refused in one line.

The first cases of `bench/fuzz.py`, which runs thousands in processes of their own.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import fuzz
from bench.fuzz_corpus import KINDS, OUTPUTS, PREDICT, build_corpus
from cellseg.errors import InputError
from cellseg.text import is_printable
from tests.read.refusal import refusal

CASES = 2  # of each kind


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("fuzz") / "corpus"
    folder.mkdir()
    build_corpus(folder, tiny)
    return folder


def run(case: fuzz.Case, corpus: Path, place: Path) -> tuple[int, str]:
    """Run a case in this process; return exit code and message."""
    argv = case.write(corpus, place, run_before)
    try:
        return run_in(place, argv), ""
    except InputError as error:
        return 2, str(error)


def run_in(place: Path, argv: Sequence[str]) -> int:
    """Run a command in this process, in a folder; return its exit code."""
    main = importlib.import_module(argv[0].removesuffix(".py")).main
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return main(argv[1:])


def run_before(argv: Sequence[str], place: Path) -> None:
    with fuzz.kept_tiles():
        run_in(place, argv)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(corpus, tmp_path, kind, capfd):
    untouched = fuzz.snapshot(corpus, ())
    for number in range(-1, CASES):
        case, place = fuzz.Case(kind, 0, number), tmp_path / "case"
        code, message = run(case, corpus, place)
        output = capfd.readouterr()
        assert code in ((0, 2) if number >= 0 else (0,)), (str(case), message)
        assert is_printable(message), str(case)
        # What the command printed, and its error as `run_command` prints it.
        text = output.out + output.err + (f"{kind}.py: error: {message}" if code else "")
        assert not fuzz.problem(0, text), str(case)
        changed = fuzz.snapshot(place).keys() - {KINDS[kind].file}
        assert changed == untouched_in(untouched, kind), str(case)
        shutil.rmtree(place)
    assert fuzz.snapshot(corpus, ()) == untouched


def untouched_in(corpus: dict[str, tuple[int, int]], kind: str) -> set[str]:
    """Return the files of the corpus that a case leaves as they are."""
    outputs = {name for name in corpus if Path(name).parts[0] in OUTPUTS}
    return corpus.keys() - outputs - {KINDS[kind].file}


@pytest.mark.parametrize("options", ["INPUT.FORMAT x", "MODEL.BACKBONE.NAME x", "TEST.SCALES ()"])
def test_impossible_keys_of_a_prediction(corpus, tmp_path, monkeypatch, options):
    import inference

    monkeypatch.chdir(corpus)
    words = [*PREDICT.split()[1:-1], tmp_path / "r.json", "--images", "images/image.jpg"]
    argv = list(map(str, words))
    assert options.split()[0] in refusal(inference.main, [*argv, *options.split()])


def test_cases_are_reproducible(corpus, tmp_path):
    for kind in ("image.tif", "rgba.png", "coco", "zip", "geojson.gz", "imagescope", "label.npy"):
        file, written = KINDS[kind].file, []
        for place in (tmp_path / "a", tmp_path / "b"):
            command = fuzz.Case(kind, 3, 7).write(corpus, place, run_before)
            written.append((command, (place / file).read_bytes()))
            shutil.rmtree(place)
        assert written[0] == written[1]


@pytest.mark.parametrize(
    ("code", "output", "found"),
    [
        (0, "wrote a\n", ""),
        (2, "train.py: error: a.tif: an empty file; copy it again\n", ""),
        (2, "", "without a reason"),
        (1, "Traceback (most recent call last):\n  x\nKeyError: 1\n", "KeyError"),
        (-9, "", "exit code -9"),
        (None, "", "over"),
        (0, "a\x1b[31m", "control character"),
        (0, "<_io.BytesIO object at 0x7f>", "a library's text"),
        (0, "libpng warning\nPNG warning: iCCP", "a library's text"),
        (0, "x.py:3: RuntimeWarning: divide\n", "a library's text"),
    ],
)
def test_what_fails(code, output, found):
    assert found in fuzz.problem(code, output)
    assert bool(found) == bool(fuzz.problem(code, output))
