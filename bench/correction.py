"""Correct and train again: the most uncertain images against images drawn at random.

    python bench/correction.py --data DIR [--seeds N ...] [--iterations N M] [--count N]

DIR has `train/` and test images with masks in `test_masks/`. For each seed, a network is trained on
a third of the training images, and predicts the others. Of these, some are corrected by their
masks, which stand for the person: those that `export.py --to_correct` chooses, as many drawn at
random, or none. Then the training goes on, by the same number of iterations each. The table has the
AP50 of the test images before and after.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.stats import spearmanr

import annotation
import export
import inference
import train
from bench.learning import printed_as_errors, score
from cellseg import runs
from cellseg.files import write_json
from cellseg.images import ImageCells
from cellseg.learn.cross_validation import estimate
from cellseg.read.annotate import annotate_image
from cellseg.read.cells import read_predicted_cells
from cellseg.read.coco import annotations_by_image, class_names
from cellseg.read.corrected import INDEX, load_index
from cellseg.read.corrected_changes import match_cells
from cellseg.read.corrected_store import Cell
from cellseg.read.layout import read_train_folder
from cellseg.rle import boxes_xyxy, concatenate, crop_runs, decode, encode, select_masks
from cellseg.write.correction import Window, rank_windows
from cellseg.write.geojson import cell_features, write_geojson

RECIPE = "lite_fpn"
SCORE = 0.5  # minimum of the cells that are written
ARMS = ("uncertain", "random", "none")


def correct(folder: Path, ground_truth: Path, windows: Collection[str] | None = None) -> int:
    """Correct exported windows as a person who sees everything would; return the cells there.

    Each written cell that overlaps one of the ground truth gets its outline and class, and keeps
    its id; the others are deleted, and what was not detected is added.

    Parameters
    ----------
    folder
        A folder of `export.py --to_correct`.
    ground_truth
        Folder of the ground-truth masks, `<image>/class<K>.tif` beside the image; the name of an
        image file is `<image>`.
    windows
        Names of the windows to correct; None for all.
    """
    index = load_index(folder / INDEX)
    names = class_names(index)
    of_image = annotations_by_image(index)
    n_cells = 0
    for image in index["images"]:
        name = Path(image["file_name"]).stem
        if windows is not None and name not in windows:
            continue
        source = image["source"]
        left, top = source["x"], source["y"]
        box = left, top, left + image["width"], top + image["height"]
        now = gt_cells(ground_truth, Path(source["path"]).stem, len(names), box)
        entries = of_image[image["id"]]
        written = [Cell(a["cell"], a["category_id"] - 1, a["segmentation"]) for a in entries]
        kept = {b: written[a].id for a, b in match_cells(written, now)[0]}
        size = image["height"], image["width"]
        masks = [cell.mask for cell in now]
        cells = ImageCells(
            id=image["id"],
            file_name=image["file_name"],
            path=folder / image["file_name"],
            size=size,
            name=name,
            masks=masks,
            classes=np.array([cell.class_ for cell in now], np.int64),
            boxes=boxes_xyxy(decode(masks, size)),
        )
        ids = [kept.get(n) or str(uuid.uuid4()) for n in range(len(now))]
        features = cell_features(cells, names, "annotation", ids=ids)
        write_geojson(folder / f"{name}.geojson", features)
        n_cells += len(now)
    return n_cells


def count_errors(window: Window, ground_truth: Path, n_classes: int) -> int:
    """Return how many corrections a whole image needs: false, missed and misclassified cells."""
    image = window.image
    assert image.scores is not None
    expected = gt_cells(ground_truth, image.path.stem, n_classes)
    kept = np.flatnonzero(image.scores >= SCORE)
    written = [Cell(str(n), int(image.classes[n]), image.masks[n]) for n in kept]
    pairs, _ = match_cells(written, expected)
    n_renamed = sum(written[a].class_ != expected[b].class_ for a, b in pairs)
    return len(written) + len(expected) - 2 * len(pairs) + n_renamed


def gt_cells(
    ground_truth: Path, name: str, n_classes: int, box: tuple[int, int, int, int] | None = None
) -> list[Cell]:
    """Return the ground-truth cells of an image, or of a window of it, XYXY."""
    image = annotate_image(read_train_folder(ground_truth / name, n_classes))
    masks = concatenate(image.size, list(image.cells.values()))
    classes = [number - 1 for number, of_class in image.cells.items() for _ in range(len(of_class))]
    masks = crop_runs(masks, box) if box else masks
    some = np.flatnonzero(np.diff(masks.offsets) > 0)
    rles = encode(select_masks(masks, some))
    return [Cell("", classes[n], rle) for n, rle in zip(some.tolist(), rles, strict=True)]


def rank_errors(results: Path, data: Path, ground_truth: Path, count: int) -> str:
    """Return how well the order of the windows fits the number of corrections that they need."""
    names, images = read_predicted_cells(results, data)
    images = list(images)
    windows = rank_windows(images)
    errors = np.array([count_errors(window, ground_truth, len(names)) for window in windows])
    area = np.array([np.prod(window.image.size) / 1e6 for window in windows])
    rank = spearmanr([window.uncertainty for window in windows], errors / area)[0]
    chosen, all_ = errors[:count].sum() / area[:count].sum(), errors.sum() / area.sum()
    return (
        f"corrections per megapixel: {chosen:.0f} in the {count} most uncertain windows, "
        f"{all_:.0f} in all {len(windows)}; rank correlation {rank:.2f}"
    )


def link_data(data: Path, folder: Path, images: Sequence[str]) -> Path:
    """Create a data folder with some of the training images, and all test images."""
    (folder / "train").mkdir(parents=True)
    for name in images:
        (folder / "train" / name).symlink_to(data.resolve() / "train" / name)
    for path in data.iterdir():
        if path.name.startswith("test"):
            (folder / path.name).symlink_to(path.resolve())
    return folder


def run_seed(
    data: Path,
    folder: Path,
    seed: int,
    iterations: Sequence[int],
    count: int,
    arms: Sequence[str],
) -> tuple[dict[str, dict[str, float]], str]:
    """Return AP50 and number of corrected cells, before and for each arm; and `rank_errors`."""
    names = sorted(path.name for path in (data / "train").iterdir())
    random.Random(seed).shuffle(names)
    known, others = names[: len(names) // 3], names[len(names) // 3 :]
    first = link_data(data, folder / "first", known)
    pool = folder / "pool"
    pool.mkdir()
    for name in others:
        (pool / f"{name}.tif").symlink_to(data.resolve() / "train" / name / "image.tif")
    scores: dict[str, dict[str, float]] = {}

    def trained(where: Path, *flags: str, n: int) -> Path:
        root = where / "runs"
        words = ["--data", str(where), "--output_dir", str(root), "--device", "cpu", *flags]
        warmup = ["SOLVER.WARMUP_ITERS", str(n // 10)]
        train.main([*words, "--processes", "1", *warmup, "SOLVER.MAX_ITER", str(n)])
        return runs.find_newest_run(root)

    def add(name: str, run: Path, n_cells: int) -> None:
        metrics, _ = score(run, data)
        ap50 = metrics["AP50@100"]["mean of classes"]["value"]
        scores[name] = {"AP50": ap50, "cells": n_cells}

    annotation.main(["--data", str(first)])
    flags = ["-m", RECIPE, "-b", "4", "--seed", str(seed)]
    run = trained(first, *flags, n=iterations[0])
    add("before", run, 0)
    argv = ["--checkpoint", str(run), "--images", str(pool), "--output", str(folder / "predicted")]
    inference.main([*argv, "--data", str(first), "--device", "cpu"])
    results = str(folder / "predicted" / "images-results.json")
    errors = rank_errors(Path(results), first, data / "train", count)
    for arm in arms:
        where = link_data(data, folder / arm, known)
        n_cells = 0
        if arm == "none":
            annotation.main(["--data", str(where)])
        else:
            fix = where / "fix"
            n = count if arm == "uncertain" else len(others)
            export.main(
                [results, "--data", str(first), "--to_correct", str(fix), "--count", str(n)]
            )
            drawn = (
                None if arm == "uncertain" else random.Random(seed).sample(sorted(others), count)
            )
            n_cells = correct(fix, data / "train", drawn)
            annotation.main(["--data", str(where), "--corrected", str(fix)])
        seeded = ["--weights", str(run), "--seed", str(seed)]
        add(arm, trained(where, *seeded, n=iterations[1]), n_cells)
    return scores, errors


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("correction"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, nargs=2, default=[300, 200], metavar="N")
    parser.add_argument("--count", type=int, default=10, help="windows to correct (10)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table: dict[int, dict[str, dict[str, float]]] = {}
    for seed in args.seeds:
        folder = args.output / str(seed)
        with printed_as_errors():
            table[seed], errors = run_seed(
                args.data, folder, seed, args.iterations, args.count, args.arms
            )
        write_json(args.output / "table.json", table, indent=1)
        text = ", ".join(
            f"{name} {s['AP50']:.3f} ({s['cells']} cells)" for name, s in table[seed].items()
        )
        print(f"seed {seed}: {errors}; AP50 {text}", flush=True)
    for name in args.arms:
        for other in ("before", *args.arms):
            if other != name:
                gains = [of[name]["AP50"] - of[other]["AP50"] for of in table.values()]
                print(f"{name} minus {other}: {estimate(gains)}")


if __name__ == "__main__":
    main()
