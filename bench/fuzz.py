"""Run the commands on damaged and hostile files, thousands of them.

Every kind of input is mutated: bytes flipped, cut and repeated, values of JSON, YAML, XML, CSV,
TIFF tags and checkpoints replaced by others, archives packed again. Each file is read by a real
command in a process of its own, forked from one that has loaded the libraries. A case fails if the
exit code is neither 0 nor 2, something looks like a traceback, control characters reach the
terminal, it takes over 20 s of a core or 3 GB, or a file changes outside the output folder.

    python bench/fuzz.py --cases 3000
    python bench/fuzz.py --kinds tiff --seed 7 --cases 100000 --hours 8
    python bench/fuzz.py --case image.tif-0-17

Cases depend only on kind, seed and number. Failing files are kept with the command's output.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import gzip
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.tiny import write_tiny

SECONDS, GIGABYTES = 20, 3.0  # allowed for a case, on an idle machine
PATIENCE = 6  # times as long on a busy one

Mutation = Callable[[bytes, random.Random], bytes]

# ------------------------------------------------------------------ mutations

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
TEXTS = [
    "",
    " ",
    "x",
    "caf\udce9",
    "\x1b[31mred\x1b[0m",
    "a\nb\tc",
    "\0",
    "../../x",
    "/",
    "é" * 300,
]
VALUES: list[Any] = [
    None, True, False, -1, 0, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**30, 10**400,
    [], {}, [[]], [None], {"": None}, "9" * 5000, *NUMBERS, *TEXTS,
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage some bytes, more often near the beginning, where headers are."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(content)
        at = int(size * rng.random() ** rng.choice((1, 3)))
        length = min(rng.choice((1, 2, 4, 16, 256)), size - at)
        match rng.randrange(7):
            case 0 if length:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at : at + length] = rng.randbytes(length)
            case 2:
                form = rng.choice(("<I", ">I", "<H", ">H"))
                number = rng.choice(NUMBERS) % (1 << (8 * struct.calcsize(form)))
                content[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = content[at : at + length] * rng.choice((1, 1, 100))
            case 5:
                content[at : at + length] = bytes(length)
            case _:
                del content[at:]
    return bytes(content)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat some values of JSON."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutate_value(value, rng)
    text = json.dumps(value)
    return text.encode() if rng.random() < 0.8 else mutate_bytes(text.encode(), rng)


def _mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a value in which one item, at any depth, is changed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.93:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        match rng.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, list):
                value.insert(key, value[key])
            case 2 if isinstance(value, list) and len(value) < 1000:
                value *= rng.choice((2, 50))
            case _:
                value[key] = _mutate_value(value[key], rng)
        return value
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value - 1, value * 1000, value + 0.5, str(value)))
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return (
            value[:at] + rng.choice((chr(rng.randrange(32, 127)), "", "\x1b", value)) + value[at:]
        )
    if rng.random() < 0.05:
        nested: Any = []
        for _ in range(rng.choice((100, 900))):
            nested = [nested]
        return nested
    return rng.choice(VALUES)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat words of XML, YAML or CSV."""
    words = re.split(rb"(\W+)", data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(words))
        match rng.randrange(6):
            case 0:
                words[at] = b""
            case 1:
                words[at] *= rng.choice((2, 1000))
            case 2:
                words[at] = rng.choice(words)
            case 3:
                words[at] = str(rng.choice(NUMBERS) * rng.choice((1, -1))).encode()
            case 4:
                words[at] = rng.choice(TEXTS).encode("utf-8", "surrogateescape")
            case _:
                words[at : at + 1] = words[at : at + rng.choice((2, 20, 200))] * 2
    return b"".join(words) if rng.random() < 0.8 else mutate_bytes(b"".join(words), rng)


def mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """Change some fields of a tag of a TIFF."""
    content = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = at + 2 + 12 * rng.randrange(count)
        field, form = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"), (8, "I")))
        number = rng.choice([*NUMBERS, rng.randrange(len(data)), rng.randrange(40_000)])
        number %= 1 << (8 * struct.calcsize(form))
        struct.pack_into(order + form, content, entry + field, number)
    return bytes(content)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk of a PNG and correct its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    n = rng.randrange(len(chunks))
    name, content = chunks[n]
    match rng.randrange(5):
        case 0:
            chunks.insert(n, (rng.choice((b"iCCP", b"tEXt", b"gAMA", b"PLTE", b"tRNS")), content))
        case 1:
            del chunks[n]
        case 2 if name == b"IHDR":
            size = struct.pack(">II", rng.choice(NUMBERS) % 2**31, rng.choice(NUMBERS) % 2**31)
            chunks[n] = name, size + content[8:]
        case 3:
            chunks.append(chunks[n])
        case _:
            chunks[n] = name, mutate_bytes(content, rng)
    made = data[:8]
    for name, content in chunks:
        crc = zlib.crc32(name + content)
        made += struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)
    return made


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change what a zip contains, or pack it otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    name, content = members[0]
    match rng.randrange(6):
        case 0:
            members = []
        case 1:
            name = rng.choice(["a/" + name, "../" + name, *TEXTS]).replace("\0", "")
        case 2:
            members.append(("other\x1b[1m.json", content))
        case 3:
            content += rng.choice((b" ", b"a", b"0")) * rng.choice((10, 10**6, 3 * 10**7))
        case _:
            content = mutate_json(content, rng)
    members[:1] = [(name, content)] if members else []
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            member = zipfile.ZipInfo(
                name.encode("utf-8", "replace").decode() or "x"
            )  # without the time
            member.compress_type = how
            archive.writestr(member, content, compresslevel=1)
    return file.getvalue()


def mutate_gzip(data: bytes, rng: random.Random) -> bytes:
    """Change what a gzip file contains."""
    content = mutate_json(gzip.decompress(data), rng)
    return gzip.compress(content + b" " * rng.choice((0, 0, 3 * 10**7)), 1, mtime=0)


def mutate_npy(data: bytes, rng: random.Random) -> bytes:
    """Change the header of an array file."""
    (length,) = struct.unpack_from("<H", data, 8)
    header = ast.literal_eval(data[10 : 10 + length].decode())
    key = rng.choice(list(header))
    shapes = [(), (-1, 4), (2**31, 2**31), (60,), (1, 60, 70), ("a", 3)]
    types = ["|O", "<f8", "<c16", "<U5", ">i2", "V9", "x", [("a", "<i4")]]
    others: dict[str, list[Any]] = {"shape": shapes, "descr": types}
    header[key] = rng.choice(others.get(key, [True, None, 3]))
    text = repr(header).encode()
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + length :]


def mutate_torch(data: bytes, rng: random.Random) -> bytes:
    """Change a value of a checkpoint."""
    import torch

    state = torch.load(io.BytesIO(data), weights_only=True)
    part = state
    for _ in range(8):
        key = rng.choice(list(part) if isinstance(part, dict) else list(range(len(part))))
        inner = part[key]
        if not (isinstance(inner, dict | list) and len(inner)) or rng.random() < 0.15:
            break
        part = inner
    if isinstance(inner, torch.Tensor) and rng.random() < 0.7:
        inner = inner.detach().clone()
        others: list[Any] = [inner.reshape(-1)[:1], inner.double() * float("nan"), inner.int()]
        part[key] = rng.choice([*others, inner * 1e30, inner.expand(3, *inner.shape)])
    elif rng.random() < 0.15 and isinstance(part, dict):
        del part[key]
    else:
        part[key] = rng.choice([v for v in VALUES if v != "caf\udce9"])
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def either(structured: Mutation, share: float = 0.6) -> Mutation:
    """Return a mutation that is structured or of bytes."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        return (structured if rng.random() < share else mutate_bytes)(data, rng)

    return mutate


# ------------------------------------------------------------------ corpus


@dataclass(frozen=True)
class Kind:
    """A kind of input: a file of the corpus, how it's mutated, and the commands that read it.

    Words of commands are relative to the case's folder, which is the working directory; all
    output goes to `out`.
    """

    file: str
    mutate: Mutation
    commands: Sequence[str]


GROUPS = "--batch_size 1 --val_fraction 0.5 --data data --groups"
TRAIN = "train.py --config_file tiny.yaml --engine torchvision --device cpu --output_dir out"
BATCH = f"{TRAIN} --show_batch out/batch.png"
PREDICT = "inference.py --checkpoint run --device cpu --score_threshold 0 --output out/r.json"
ANNOTATE = "annotation.py --jobs 1 --output out/annotations.json --data"
COCO = [
    f"{ANNOTATE} data --coco coco.json",
    f"{BATCH} --data data --annotations coco.json",
    "evaluate.py results.json --data data --truth coco.json --resamples 9 --csv out/a.csv",
    "report.py --data data --annotations coco.json --output out/report.html",
    "export.py coco.json --data data --output out",
    "check_submission.py results.json --data data --annotations coco.json",
]
RESULTS = [
    "evaluate.py {} --data data --truth coco.json --resamples 9 --json out/a.json",
    "report.py {} --data data --truth coco.json --resamples 9 --output out/report.html",
    "export.py {} --data data --annotations coco.json --output out",
    "check_submission.py {} --data data",
]


def of(commands: Sequence[str], file: str) -> list[str]:
    """Return the commands for a file."""
    return [command.format(file) for command in commands]


def images(file: str) -> list[str]:
    """Return the commands that read an image."""
    return [f"{PREDICT} --images {file}", f"{PREDICT} --images {file} --tile 512 --overlap 64"]


KINDS = {
    "image.tif": Kind(
        "data/train/a/image.tif",
        either(mutate_tiff),
        [f"{ANNOTATE} data", f"{BATCH} --data data"],
    ),
    "class.tif": Kind("data/train/a/class1.tif", either(mutate_tiff), [f"{ANNOTATE} data"]),
    "truth.tif": Kind(
        "data/test_masks/t/class1.tif",
        either(mutate_tiff),
        ["evaluate.py results.json --data data --resamples 9 --csv out/a.csv"],
    ),
    **{
        name: Kind(f"images/{name}", mutation, images(f"images/{name}"))
        for name, mutation in {
            "rgba.png": either(mutate_png),
            "grey16.png": either(mutate_png),
            "image.jpg": mutate_bytes,
            "image.bmp": mutate_bytes,
            "tiled.tif": either(mutate_tiff),
            "jpeg.tif": either(mutate_tiff),
            "pyramid.tif": either(mutate_tiff),
            "planar16.tif": either(mutate_tiff),
            "strips.tif": either(mutate_tiff),
            "jpeg2000.tif": either(mutate_tiff),
            "slide.svs": either(mutate_tiff),
        }.items()
    },
    "geojson": Kind("geo/train/a/a.geojson", either(mutate_json, 0.8), [f"{ANNOTATE} geo"]),
    "geojson.gz": Kind("gz/train/a/a.geojson.gz", either(mutate_gzip), [f"{ANNOTATE} gz"]),
    "imagescope": Kind("xml/train/a/a.xml", either(mutate_text), [f"{ANNOTATE} xml"]),
    "label.png": Kind("png/train/a/label.png", either(mutate_png), [f"{ANNOTATE} png"]),
    "label.npy": Kind("npy/train/a/label.npy", either(mutate_npy), [f"{ANNOTATE} npy"]),
    "classes.csv": Kind("npy/train/a/classes.csv", mutate_text, [f"{ANNOTATE} npy"]),
    "coco": Kind("coco.json", either(mutate_json, 0.85), COCO),
    "test list": Kind(
        "data/test_image_name_to_ids.json",
        either(mutate_json, 0.85),
        [f"{ANNOTATE} data", f"{PREDICT} --data data",
         "check_submission.py results.json --data data",
         "evaluate.py results.json --data data --resamples 0"],
    ),
    "results": Kind("results.json", either(mutate_json, 0.85), of(RESULTS, "results.json")),
    "zip": Kind("results.zip", either(mutate_zip), of(RESULTS, "results.zip")),
    "sidecar list": Kind(
        "own/r-list.json", either(mutate_json, 0.85),
        ["evaluate.py own/r.json --data data --truth coco.json --resamples 0",
         "export.py own/r.json --data data --output out",
         "report.py own/r.json --data data --output out/report.html"],
    ),
    "groups.csv": Kind(
        "groups.csv", mutate_text, [f"{BATCH} {GROUPS} groups.csv"]
    ),
    "groups.json": Kind(
        "groups.json",
        either(mutate_json),
        [f"{BATCH} {GROUPS} groups.json"],
    ),
    "config": Kind("tiny.yaml", either(mutate_text, 0.9), [f"{BATCH} --data data"]),
    "run config": Kind(
        "run/config.yaml", either(mutate_text, 0.9), [f"{PREDICT} --images images/image.jpg"]
    ),
    "run record": Kind(
        "run/run.json", either(mutate_json, 0.85),
        [f"{PREDICT} --images images/image.jpg", f"{PREDICT} --dataset val --data data",
         "export.py run --data data --output out", "train.py --resume run --device cpu"],
    ),
    "metrics": Kind(
        "run/metrics.json", mutate_text, ["report.py run --data data --output out/report.html"]
    ),
    "weights": Kind(
        "run/model_final.pth", either(mutate_torch),
        [f"{PREDICT} --images images/image.jpg --weight_name model_final.pth",
         f"{TRAIN} --data data --weights run/model_final.pth SOLVER.MAX_ITER 1"],
    ),
    "checkpoint": Kind(
        "run/last.pth", either(mutate_torch), ["train.py --resume run --device cpu"]
    ),
    "best": Kind(
        "run/model_best.pth", either(mutate_torch),
        [f"{PREDICT} --images images/image.jpg", "train.py --resume run --device cpu --epochs 3"],
    ),
    "safetensors": Kind(
        "weights.safetensors", mutate_bytes,
        [f"{TRAIN} --data data --weights weights.safetensors SOLVER.MAX_ITER 1"],
    ),
}  # fmt: skip
# train.py --resume writes into the run that it resumes.
OUTPUTS = ("out", "run")


def build_corpus(folder: Path, config: Path, run: Path | None = None) -> None:
    """Write valid files of every kind; `config` is of a tiny network, `run` a run of it."""
    import numpy as np
    import PIL.Image
    import tifffile
    import torch
    from safetensors.torch import save_file

    import annotation
    import export
    import inference
    import train
    from cellseg import runs
    from cellseg.files import read_json
    from cellseg.read.synthetic import write_dataset
    from cellseg.read.tiff import read_labels
    from cellseg.read.window import read_image

    data = folder / "data"
    write_dataset(data, n_train=3, n_test=1, sizes=[(60, 70)], cells_per_megapixel=3000, scale=0.6)
    for number, image in enumerate(sorted((data / "train").iterdir())):
        image.rename(data / "train" / "abc"[number])
    entries = json.loads((data / "test_image_name_to_ids.json").read_text())
    name = Path(entries[0]["file_name"]).stem
    (data / "test_release" / f"{name}.tif").rename(data / "test_release" / "t.tif")
    (data / "test_masks" / name).rename(data / "test_masks" / "t")
    entries[0]["file_name"] = "t.tif"
    (data / "test_image_name_to_ids.json").write_text(json.dumps(entries))
    annotation.main(["--data", str(data)])
    shutil.copy(config, folder / "tiny.yaml")

    pixels = read_image(data / "train" / "a" / "image.tif")
    labels = read_labels(data / "train" / "a" / "class1.tif").astype(np.uint16)
    (folder / "images").mkdir()
    at = folder / "images"
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    PIL.Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(at / "rgba.png")
    PIL.Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(at / "grey16.png")
    PIL.Image.fromarray(pixels).save(at / "image.jpg", exif=PIL.Image.Exif())
    PIL.Image.fromarray(pixels).save(at / "image.bmp")
    tifffile.imwrite(at / "tiled.tif", pixels, tile=(32, 32), compression="zlib", predictor=True)
    tifffile.imwrite(at / "jpeg.tif", pixels, tile=(32, 32), compression="jpeg")
    tifffile.imwrite(at / "jpeg2000.tif", pixels, tile=(32, 32), compression="jpeg2000")
    tifffile.imwrite(at / "strips.tif", pixels, rowsperstrip=7, compression="lzw")
    tifffile.imwrite(
        at / "planar16.tif", np.moveaxis(pixels.astype(np.uint16) * 257, 2, 0),
        planarconfig="separate", photometric="rgb", byteorder=">",
    )  # fmt: skip
    with tifffile.TiffWriter(at / "pyramid.tif") as tiff:
        tiff.write(pixels, tile=(32, 32), subifds=1, compression="deflate")
        tiff.write(pixels[::2, ::2], tile=(32, 32), subfiletype=1, compression="deflate")

    tifffile.imwrite(
        at / "slide.svs", pixels, tile=(32, 32), compression="jpeg",
        description="Aperio Image Library v11\r\n70x60 |AppMag = 20|MPP = 0.5",
    )  # fmt: skip

    coco = data / "train__annot.json"
    export.main([str(coco), "--data", str(data), "--output", str(folder / "e")])
    outlines = next((folder / "e" / "geojson").rglob("a.geojson")).read_bytes()
    shutil.rmtree(folder / "e")
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ((3, 3), (20, 4), (9, 22)))
    region = f'<Region Id="1" Type="0"><Vertices>{vertices}</Vertices></Region>'
    xml = f'<Annotation Id="1" Name="class1"><Regions>{region}</Regions></Annotation>'
    rows = [(n, f"class{1 + n % 4}") for n in np.unique(labels)[1:].tolist()]
    table = "label,class\n" + "".join(f"{label},{name}\n" for label, name in rows)
    png, npy = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(labels).save(png, "PNG")
    np.save(npy, labels)
    for name, files in {
        "geo": {"a.geojson": outlines},
        "gz": {"a.geojson.gz": gzip.compress(outlines)},
        "xml": {"a.xml": f"<Annotations>{xml}</Annotations>".encode()},
        "png": {"label.png": png.getvalue(), "classes.csv": table.encode()},
        "npy": {"label.npy": npy.getvalue(), "classes.csv": table.encode()},
    }.items():
        image = folder / name / "train" / "a"
        image.mkdir(parents=True)
        shutil.copy(data / "train" / "a" / "image.tif", image)
        for file, content in files.items():
            (image / file).write_bytes(content)

    if run is None:
        argv = f"--config_file {config} --data {data} --output_dir {folder / 'runs'} --device cpu"
        argv += " --engine torchvision --val_fraction 0.4 TEST.EVAL_PERIOD 2"
        train.main(argv.split())
        run = runs.find_newest_run(folder / "runs")
    shutil.copytree(run, folder / "run")
    # So that the run is found in the case's folder, wherever that is.
    for file in ("config.yaml", "run.json"):
        text = (folder / "run" / file).read_text()
        (folder / "run" / file).write_text(text.replace(f"{folder}/", ""))
    shutil.rmtree(folder / "runs", ignore_errors=True)
    argv = f"--checkpoint {folder / 'run'} --device cpu --score_threshold 0 --data {data}"
    inference.main([*argv.split(), "--output", str(folder / "run")])
    own = [str(data / "train" / name / "image.tif") for name in "abc"]
    inference.main([*argv.split(), "--images", *own, "--output", str(folder / "own" / "r.json")])
    (folder / "own" / "r-list.json").write_text(
        (folder / "own" / "r-list.json").read_text().replace(f"{folder}/", "")
    )
    coco_value = read_json(coco, "", "")
    first, second, *_ = coco_value["annotations"]
    first["segmentation"] = [[3, 3, 20, 4, 9, 22]]
    second["segmentation"] = [[3, 3, 9, 4, 9, 8], [30, 3, 40, 9, 31, 30]]
    (folder / "coco.json").write_text(json.dumps(coco_value))
    results = read_json(folder / "run" / "test-results.json", "", "")
    (folder / "results.json").write_text(json.dumps(results))
    with zipfile.ZipFile(folder / "results.zip", "w") as archive:
        archive.write(folder / "results.json", "test-results.json")
    names = ["a", "b", "c"]
    (folder / "groups.json").write_text(json.dumps({name: f"patient {name}" for name in names}))
    (folder / "groups.csv").write_text("image,group\na,1\nb,1\nc,2\n")
    weights = torch.load(folder / "run" / "model_final.pth", weights_only=True)["model"]
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, folder / "weights.safetensors")


# ------------------------------------------------------------------ cases


@dataclass(frozen=True)
class Case:
    """A mutated file, and the command that reads it; equal for equal kind, seed and number.

    The file is not mutated if the number is negative, as a check of the corpus.
    """

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"

    def write(self, corpus: Path, folder: Path) -> list[str]:
        """Write the corpus with the mutated file into a new folder; return the command."""
        rng = random.Random(str(self))
        kind = KINDS[self.kind]
        content = (corpus / kind.file).read_bytes()
        if self.number >= 0:
            try:
                content = kind.mutate(content, rng)
            except Exception:  # noqa: BLE001 (what can't be mutated again)
                content = mutate_bytes(content, rng)
        command = rng.choice(kind.commands)
        shutil.copytree(corpus, folder, copy_function=_link_or_copy)
        (folder / kind.file).unlink()
        (folder / kind.file).write_bytes(content)
        (folder / "out").mkdir()
        return command.split()


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy one that a resumed training appends to."""
    in_run = Path(source).parent.name == "run" and not source.endswith(".pth")
    (shutil.copy2 if in_run else os.link)(source, target)


def snapshot(folder: Path, leave_out: Sequence[str] = OUTPUTS) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file outside the output folders."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] not in leave_out and not path.is_dir():
            stat = path.lstat()
            files[str(name)] = stat.st_size, stat.st_mtime_ns
    return files


def problem(code: int | None, output: str) -> str:
    """Return what is wrong with a command's exit code and output, or ""."""
    if code is None:
        return f"over {PATIENCE * SECONDS} s"
    if "Traceback (most recent" in output or code == 1:
        found = re.findall(r"^(\w[\w.]*(?:Error|Exception|Warning)\b.*)$", output, re.MULTILINE)
        return "traceback: " + (found[-1] if found else "?")[:100]
    if code not in (0, 2):
        return f"exit code {code}"
    if code == 2 and not re.search(r"^\w+\.py: error: .", output, re.MULTILINE):
        return "exit code 2 without a reason"
    if raw := re.search(r"[^\n\t\r\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f]|[\ud800-\udfff]", output):
        return f"control character {raw[0]!a} in the output"
    if match := re.search(
        r"<[\w.]+ object at 0x|PNG warning|libtiff|OpenCV|\[ WARN|\w+Warning: ", output
    ):
        return f"a library's text: {match[0]}"
    return ""


# ------------------------------------------------------------------ running


@dataclass
class Outcome:
    """What happened to one case."""

    problem: str
    code: int | None
    seconds: float
    gigabytes: float
    output: str


def run_case(case: Case, corpus: Path, folder: Path) -> Outcome:
    """Run a case in a forked process, in a new folder within `folder`."""
    place = folder / "case"
    argv = case.write(corpus, place)
    before = snapshot(folder, ()) | {"": (0, 0)}
    kept = {name: state for name, state in before.items() if not _is_output(name)}
    output = folder.with_name(folder.name + ".txt")
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _run_command(argv, place, output)
    descriptor = os.pidfd_open(pid)
    ready, _, _ = select.select([descriptor], [], [], PATIENCE * SECONDS)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(descriptor)
    seconds = usage.ru_utime + usage.ru_stime if ready else time.monotonic() - began
    code = os.waitstatus_to_exitcode(status) if ready else None
    text = output.read_text("utf-8", "surrogateescape")
    found = problem(code, text)
    gigabytes = usage.ru_maxrss / 1e6
    after = {n: s for n, s in (snapshot(folder, ()) | {"": (0, 0)}).items() if not _is_output(n)}
    if not found and after != kept:
        changed = {name for name in after.keys() | kept if after.get(name) != kept.get(name)}
        found = f"changed outside the output: {', '.join(sorted(changed)[:3])}"
    if not found and seconds > SECONDS:
        found = f"{seconds:.0f} s"
    if not found and gigabytes > GIGABYTES:
        found = f"{gigabytes:.1f} GB"
    return Outcome(found, code, seconds, gigabytes, text)


def _is_output(name: str) -> bool:
    return Path(name).parts[:2] in [("case", output) for output in OUTPUTS]


def _run_command(argv: Sequence[str], place: Path, output: Path) -> None:
    """Run a command in this process, a forked one, and exit."""
    try:
        os.chdir(place)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + int(2 * GIGABYTES * 1e9)  # for the machine's sake
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        import importlib

        import utils

        main = importlib.import_module(argv[0].removesuffix(".py")).main
        sys.argv = list(argv)
        utils.run_command(main)
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:  # noqa: BLE001 the exit code tells
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def load_libraries() -> None:
    """Import everything that the commands do, so that forked processes have it."""
    import annotation  # noqa: F401
    import check_submission  # noqa: F401
    import evaluate  # noqa: F401
    import export  # noqa: F401
    import inference  # noqa: F401
    import report  # noqa: F401
    import train  # noqa: F401
    import trainer  # noqa: F401
    from cellseg.learn import cross_validation, session  # noqa: F401
    from cellseg.look import batch  # noqa: F401
    from cellseg.network import torchvision  # noqa: F401
    from cellseg.predict import job  # noqa: F401
    from cellseg.score import summary  # noqa: F401


SETTINGS = """\
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 100}
SOLVER: {OPTIMIZER: AdamW, IMS_PER_BATCH: 2, MAX_ITER: 2, EPOCHS: 0.0, WARMUP_ITERS: 1}
"""


def prepare(folder: Path) -> Path:
    """Build the corpus in a forked process, as threads of a training can't be forked."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    config = folder / "tiny.yaml"
    write_tiny(config, SETTINGS)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                build_corpus(corpus, config)
            code = 0
        except BaseException:  # noqa: BLE001 the parent only sees the code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the corpus can't be built")
    return corpus


def main() -> None:
    """Run the cases and print a table by kind; exit with 1 if any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--cases", type=int, default=3000, help="cases, spread over the kinds (3000)")
    add("--hours", type=float, default=24.0, help="stop after this time (24)")
    add("--seed", type=int, default=0, help="seed of the mutations (0)")
    add("--kinds", nargs="+", default=list(KINDS), help="only kinds whose names contain one")
    add("--case", help="run one case, KIND-SEED-NUMBER, and show its output; below 0 unmutated")
    add("--keep", type=Path, default=Path("fuzz-failures"), help="folder for failing files")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load_libraries()
    gc.collect()
    gc.freeze()  # pages that forked processes share
    with tempfile.TemporaryDirectory() as scratch:
        corpus = prepare(Path(scratch))
        sys.exit(run_cases(args, corpus, Path(scratch)))


def run_cases(args: argparse.Namespace, corpus: Path, scratch: Path) -> int:
    """Run the requested cases. Return 1 if any failed, else 0."""
    if args.case:
        match = re.fullmatch(r"(.*?)-(\d+)-(-?\d+)", args.case)
        if not match:
            raise SystemExit("--case: expected KIND-SEED-NUMBER")
        cases = [Case(match[1], int(match[2]), int(match[3]))]
    else:
        kinds = [name for name in KINDS if any(word in name for word in args.kinds)]
        cases = [Case(name, args.seed, -n) for name in kinds for n in (1, 2)]
        cases += [
            Case(kinds[n % len(kinds)], args.seed, n // len(kinds)) for n in range(args.cases)
        ]
    untouched = snapshot(corpus, ())
    began, outcomes = time.monotonic(), dict[Case, Outcome]()
    for case in cases:
        if time.monotonic() - began > 3600 * args.hours:
            break
        folder = scratch / "place"
        folder.mkdir()
        outcome = outcomes[case] = run_case(case, corpus, folder)
        if case.number < 0 and outcome.code:
            outcome.problem = "a valid file is refused"
        if outcome.problem:
            print(f"{case}: {outcome.problem}", flush=True)
            kept = args.keep / str(case).replace(" ", "_")
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "case" / KINDS[case.kind].file, kept)
            (kept / "output.txt").write_text(outcome.output, "utf-8", "backslashreplace")
        if args.case:
            print(outcome.output)
        shutil.rmtree(folder)
        if snapshot(corpus, ()) != untouched:
            raise SystemExit(f"{case} changed its input")
    print(f"{'kind':14} cases     ok refused failed  slowest    memory")
    for name in dict.fromkeys(case.kind for case in outcomes):
        of_kind = [outcome for case, outcome in outcomes.items() if case.kind == name]
        good = [outcome.code for outcome in of_kind if not outcome.problem]
        print(
            f"{name:14} {len(of_kind):5} {good.count(0):6} {good.count(2):7} "
            f"{len(of_kind) - len(good):6} {max(o.seconds for o in of_kind):6.1f} s "
            f"{max(o.gigabytes for o in of_kind):6.2f} GB"
        )
    failed = sum(bool(outcome.problem) for outcome in outcomes.values())
    print(f"{len(outcomes)} cases in {time.monotonic() - began:.0f} s, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    main()
