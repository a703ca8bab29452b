"""annotation.py from the command line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pycocotools.coco import COCO

import annotation
from annotation import main
from cellseg.read.layout import TEST_LIST
from tests.read.refusal import refusal

PROJECT = Path(__file__).resolve().parents[1]


def write_tissue(data, n_images=3):
    """Write images of 20 x 30; image n has n cells of class 1 and, for n > 0, one of class 3."""
    for n in range(n_images):
        folder = data / "train" / f"tissue{n}"
        folder.mkdir(parents=True)
        image = np.full((20, 30, 4), 255 - n, np.uint8)
        lzw = {"compression": "lzw", "predictor": True}
        tifffile.imwrite(folder / "image.tif", image, photometric="rgb", extrasamples=[2], **lzw)
        if n:
            first = np.zeros((20, 30))
            for cell in range(n):
                first[:5, 6 * cell : 6 * cell + 5] = cell + 1
            third = np.zeros((20, 30))
            third[10:15, 5:9] = n + 1
            tifffile.imwrite(folder / "class1.tif", first)
            tifffile.imwrite(folder / "class3.tif", third)
    return data


def write_test(data, **change):
    (data / "test").mkdir()
    tifffile.imwrite(data / "test" / "a.tif", np.zeros((4, 4), np.uint8))
    entry = {"file_name": "a.tif", "id": 1, "height": 4, "width": 4}
    (data / TEST_LIST).write_text(json.dumps([entry, {**entry, **change}]))


def written(path):
    return json.loads(path.read_text())


def test_everything(tmp_path, capsys):
    data = write_tissue(tmp_path / "data")
    assert main(["--data", str(data)]) == 0
    out, err = capsys.readouterr()
    output = data / "train__annot.json"
    assert out.splitlines() == [
        "class     images  instances",
        "1 class1       2          3",
        "2 class2       0          0",
        "3 class3       2          2",
        "4 class4       0          0",
        "all            3          5",
        f"wrote {output}",
    ]
    # No progress bar where there is no terminal.
    assert err == "warning: images without cells: 1, in 1 image: tissue0\n"
    coco = written(output)
    assert [(i["id"], i["file_name"]) for i in coco["images"]] == [
        (1, "train/tissue0/image.tif"),
        (2, "train/tissue1/image.tif"),
        (3, "train/tissue2/image.tif"),
    ]
    found = [(a["image_id"], a["category_id"], a["area"], a["bbox"]) for a in coco["annotations"]]
    assert found == [
        (2, 1, 25, [0, 0, 5, 5]),
        (2, 3, 20, [5, 10, 4, 5]),
        (3, 1, 25, [0, 0, 5, 5]),
        (3, 1, 25, [6, 0, 5, 5]),
        (3, 3, 20, [5, 10, 4, 5]),
    ]
    names = [(c["id"], c["name"]) for c in coco["categories"]]
    assert names == [(1, "class1"), (2, "class2"), (3, "class3"), (4, "class4")]
    assert len(COCO(output).anns) == 5


def test_the_output_does_not_depend_on_jobs_and_place(tmp_path, monkeypatch):
    data = write_tissue(tmp_path / "data", 6)
    digests = set()
    for jobs in ("1", "2", "5"):
        output = tmp_path / f"{jobs}.json"
        main(["--data", str(data), "--output", str(output), "--jobs", jobs])
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    main(["--data", "data", "--output", "here/relative.json"])
    digests.add(hashlib.sha256((tmp_path / "here/relative.json").read_bytes()).hexdigest())
    assert len(digests) == 1
    assert not (data / "train__annot.json").exists()


def test_the_default_folder_is_next_to_the_script(tmp_path, monkeypatch):
    assert annotation.get_parser().get_default("data") == PROJECT / "nycu-hw3-data"
    monkeypatch.chdir(tmp_path)
    assert annotation.get_parser().parse_args([]).data.is_absolute()


def test_classes_of_other_names(tmp_path, capsys):
    data = write_tissue(tmp_path)
    main(["--data", str(data), "--class_names", "a", "b c", "d"])
    categories = written(data / "train__annot.json")["categories"]
    assert [c["name"] for c in categories] == ["a", "b c", "d"]
    assert "2 b c       0          0" in capsys.readouterr().out


def test_too_few_class_names(tmp_path):
    data = write_tissue(tmp_path)
    message = refusal(main, ["--data", str(data), "--class_names", "a", "b"])
    assert "class3.tif: " in message
    assert "--class_names" in message
    assert not (data / "train__annot.json").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--class_names", "a", "a"], "--class_names: "),
        (["--class_names", "a", " "], "--class_names: "),
        (["--class_names", "Tumor", "tumor "], "--class_names: "),
        (["--class_names", "\u00e9", "e\u0301"], "--class_names: "),  # é, of one letter and of two
        (["--class_names"], "expected at least one argument"),
        (["--jobs", "0"], "'0' is not a whole number of 1 or more"),
        (["--jobs", "two"], "'two' is not a whole number of 1 or more"),
        (["--jobs", "1.5"], "'1.5' is not a whole number of 1 or more"),
        (["--skipbad"], "unrecognized arguments: --skipbad"),
    ],
)
def test_wrong_flags(arguments, found):
    assert found in refusal(main, arguments)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "python annotation.py --data" in out
    flags = ["data", "output", "class_names", "merge_classes", "coco", "mpp", "outlines", "jobs"]
    for flag in [*flags, "skip_bad"]:
        assert f"--{flag}" in out
    assert out.count("(default: ") == 9


def truncate(folder):
    data = (folder / "image.tif").read_bytes()
    (folder / "image.tif").write_bytes(data[: len(data) // 2])


def relabel(value, dtype="f8"):
    def change(folder):
        labels = tifffile.imread(folder / "class1.tif").astype(dtype)
        labels[7, 3] = value
        tifffile.imwrite(folder / "class1.tif", labels)

    return change


DAMAGE = {
    "a truncated image": (truncate, "image.tif: damaged"),
    "an empty mask file": (lambda f: (f / "class1.tif").write_bytes(b""), "class1.tif: an empty"),
    "a text": (lambda f: (f / "class1.tif").write_text("masks"), "class1.tif: not a TIFF"),
    "another size": (
        lambda f: tifffile.imwrite(f / "class1.tif", np.zeros((30, 20))),
        "class1.tif: 30 x 20 (height x width), expected 20 x 30",
    ),
    "a negative label": (relabel(-2, "i4"), "class1.tif: label -2 in row 7, column 3"),
    "a fractional label": (relabel(0.5), "class1.tif: label 0.5 in row 7, column 3"),
    "a NaN label": (relabel(np.nan), "class1.tif: label nan in row 7, column 3"),
    "an infinite label": (relabel(np.inf), "class1.tif: label inf in row 7, column 3"),
    "a class too many": (
        lambda f: (f / "class1.tif").rename(f / "class5.tif"),
        "class5.tif: class number out of range",
    ),
    "no image": (lambda f: (f / "image.tif").unlink(), "tissue1: no image.tif"),
}


@pytest.mark.parametrize(("damage", "found"), DAMAGE.values(), ids=DAMAGE)
def test_bad_images_are_an_error_or_skipped(tmp_path, capsys, damage, found):
    data = write_tissue(tmp_path)
    damage(data / "train" / "tissue1")
    output = data / "train__annot.json"
    line = refusal(main, ["--data", str(data), "--jobs", "2"])
    assert line.startswith(str(data / "train" / "tissue1"))
    assert found in line
    assert "--skip_bad" in line
    assert sorted(p.name for p in data.iterdir()) == ["train"]

    assert main(["--data", str(data), "--jobs", "2", "--skip_bad"]) == 0
    assert [image["file_name"] for image in written(output)["images"]] == [
        "train/tissue0/image.tif",
        "train/tissue2/image.tif",
    ]
    (skipped,) = [s for s in capsys.readouterr().err.splitlines() if "skipped: " in s]
    assert found in skipped


def test_the_first_bad_image_by_name_is_the_error(tmp_path):
    data = write_tissue(tmp_path, 5)
    for n in (4, 1, 3):
        truncate(data / "train" / f"tissue{n}")
    assert "tissue1/image.tif: damaged" in refusal(main, ["--data", str(data), "--jobs", "4"])


def test_an_error_leaves_the_earlier_file(tmp_path):
    data = write_tissue(tmp_path)
    main(["--data", str(data)])
    before = (data / "train__annot.json").read_bytes()
    truncate(data / "train" / "tissue2")
    refusal(main, ["--data", str(data)])
    assert (data / "train__annot.json").read_bytes() == before


def test_no_usable_image(tmp_path):
    data = write_tissue(tmp_path, 1)
    truncate(data / "train" / "tissue0")
    message = refusal(main, ["--data", str(data), "--skip_bad"])
    assert message.startswith(f"{data}: none of 1 training image ")
    assert not (data / "train__annot.json").exists()


def test_no_data(tmp_path):
    assert "absent: no such folder" in refusal(main, ["--data", str(tmp_path / "absent")])
    (tmp_path / "train").mkdir()
    assert "train: no training images" in refusal(main, ["--data", str(tmp_path), "--skip_bad"])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"file_name": "b.tif"}, "id 1 occurs twice"),
        ({"file_name": "b.tif", "id": 2}, "lists b.tif, not found"),
        ({"id": 2}, "file_name a.tif occurs twice"),
    ],
)
def test_a_bad_test_list(tmp_path, capsys, change, found):
    data = write_tissue(tmp_path)
    write_test(data, **change)
    message = refusal(main, ["--data", str(data)])
    assert message.startswith(str(data / TEST_LIST))
    assert found in message
    assert not (data / "train__annot.json").exists()
    assert main(["--data", str(data), "--skip_bad"]) == 0
    assert f"skipped: {data / TEST_LIST}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(tmp_path):
    data = write_tissue(tmp_path)
    message = refusal(main, ["--data", str(data), "--output", str(data / "train")])
    assert "train: can't be written" in message


def test_long_lists_of_images_with_warnings_are_cut(tmp_path, capsys):
    data = tmp_path
    for n in range(5):
        folder = data / "train" / f"t{n}"
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "image.tif", np.full((2, 2), 99, np.uint8))
    main(["--data", str(data)])
    assert "images without cells: 5, in 5 images: t0, t1, t2, …\n" in capsys.readouterr().err


def test_the_command_from_another_folder(tmp_path):
    write_tissue(tmp_path / "data")
    command = [sys.executable, str(PROJECT / "annotation.py"), "--data", "data"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == ["1 warning (see above)"]
    assert done.stdout.endswith(f"wrote {Path('data', 'train__annot.json')}\n")
    truncate(tmp_path / "data" / "train" / "tissue1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("annotation.py: error: data/train/tissue1/image.tif: damaged")


def test_micrometres_per_pixel_are_recorded_where_known(tmp_path, capsys):
    data = write_tissue(tmp_path / "data")
    image = np.full((20, 30, 3), 255, np.uint8)
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(data / "train" / "tissue1" / "image.tif", image, photometric="rgb", **tags)
    output = data / "train__annot.json"

    def recorded(*words):
        assert main(["--data", str(data), *words]) == 0
        return [image.get("mpp", "none") for image in written(output)["images"]]

    assert recorded() == ["none", 0.5, "none"]
    assert "micrometres per pixel: 0.5, unknown for 2 of 3" in capsys.readouterr().out
    assert recorded("--mpp", "0.25") == [0.25] * 3
    assert "micrometres per pixel: 0.25\n" in capsys.readouterr().out
    # A COCO file's own value comes before the image file's.
    other = tmp_path / "other.json"
    coco = written(output)
    del coco["images"][0]["mpp"]
    other.write_text(json.dumps(coco))
    assert recorded("--coco", str(other)) == ["none", 0.25, 0.25]
