"""Names of classes and images: one rule in all commands, and nothing raw on the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import annotation
import check_submission
import evaluate
import export
import inference
import report
import train
from cellseg.errors import InputError
from cellseg.text import is_printable, printable, show
from tests.read.refusal import refusal

NAMES = {
    "not UTF-8": "caf\udce9",
    "escape sequence": "\x1b[31mred",
    "newline": "two\nlines",
    "tab": "a\tb",
    "null": "a\0b",
    "line separator": "a\u2028b",
    "empty": " ",
    "long": 201 * "x",
    "another's": "CLASS2 ",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_cells):
    return make_cells(tmp_path_factory.mktemp("names") / "data", 1, 1)


@pytest.fixture
def rename(data, tmp_path):
    """Function that writes the annotations, with a change, to a new file."""

    def write(change):
        coco = json.loads((data / "train__annot.json").read_text())
        change(coco)
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        return str(tmp_path / "coco.json")

    return write


def reading(coco: str, data: Path, folder: Path):
    """Return the commands that read a COCO file, with their arguments."""
    (folder / "results.json").write_text("[]")
    results, data_flag = str(folder / "results.json"), ["--data", str(data)]
    out = str(folder / "out")
    return {
        annotation.main: [*data_flag, "--coco", coco, "--output", out],
        train.main: [*data_flag, "--annotations", coco, "--output_dir", out, "--device", "cpu",
                     "--weights", "none"],
        evaluate.main: [results, *data_flag, "--truth", coco],
        report.main: [*data_flag, "--annotations", coco, "--output", out],
        export.main: [coco, *data_flag, "--output", out],
        check_submission.main: [results, *data_flag, "--annotations", coco],
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_class_names_that_no_command_takes(rename, data, tmp_path, name):
    coco = rename(lambda coco: coco["categories"][0].update(name=name))
    for main, argv in reading(coco, data, tmp_path).items():
        message = refusal(main, argv)
        assert coco in message
        assert "name" in message
        assert is_printable(message)
        assert len(message) < 1000
    for main in (annotation.main, export.main):
        argv = [str(tmp_path / "results.json")] if main is export.main else []
        argv += ["--data", str(data), "--class_names", name, "class2"]
        assert "--class_names" in refusal(main, argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["é", "日本", "tumour: MIB+", "a\u200db", "  x", "😀"])
def test_class_names_of_any_language(rename, data, tmp_path, name):
    coco = rename(lambda coco: coco["categories"][0].update(name=name))
    argv = reading(coco, data, tmp_path)[annotation.main]
    assert annotation.main(argv) == 0
    assert json.loads(Path(argv[-1]).read_text("utf-8"))["categories"][0]["name"] == name


@pytest.mark.parametrize("name", [NAMES[key] for key in list(NAMES)[:6]], ids=list(NAMES)[:6])
def test_image_names_that_no_command_takes(rename, data, tmp_path, name):
    coco = rename(lambda coco: coco["images"][0].update(file_name=name + ".tif"))
    for main, argv in reading(coco, data, tmp_path).items():
        assert is_printable(message := refusal(main, argv))
        assert coco in message


def test_own_images_with_names_that_no_command_takes(data, run, tmp_path):
    image = tmp_path / "\x1b[31m.tif"
    image.write_bytes(next((data / "test_release").iterdir()).read_bytes())
    argv = ["--checkpoint", str(run), "--device", "cpu", "--output", str(tmp_path / "out")]
    for images in (image, tmp_path):
        message = refusal(inference.main, [*argv, "--images", str(images)])
        assert r"\x1b[31m.tif" in message


def test_messages_are_one_printable_line():
    message = str(InputError("a\x1b]0;title\x07 \udce9\nb" + 10_000 * "x"))
    assert message.startswith(r"a\x1b]0;title\x07 \udce9 b")
    assert len(message) < 3000


def test_names_of_files_are_escaped_on_the_terminal(tmp_path):
    script = Path(annotation.__file__)
    command = [sys.executable, str(script), "--data", str(tmp_path / "\x1b[31m\udce9")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert rb"\x1b[31m\udce9" in done.stderr
    assert b"\x1b" not in done.stderr


def test_text_fit_for_messages():
    assert printable("ünïcode ok") == "ünïcode ok"
    assert printable("\r\x9b\u2029") == r"\r\x9b\u2029"
    assert show(None) == "null"
    assert show(True) == "true"
    assert show({"a": "\x1b"}) == r'{"a": "\u001b"}'
    assert len(show(list(range(100_000)))) < 100
    assert len(show(100_000 * "x")) < 100
