"""Valid files of every kind of input, and the commands that read them, for `bench/fuzz.py`."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench import scanners
from bench.mutations import (
    Mutation,
    either,
    mutate_bytes,
    mutate_dicom,
    mutate_gzip,
    mutate_json,
    mutate_lines,
    mutate_matlab,
    mutate_npy,
    mutate_pickle,
    mutate_png,
    mutate_text,
    mutate_tiff,
    mutate_torch,
    mutate_zip,
)


@dataclass(frozen=True)
class Kind:
    """A kind of input: a file of the corpus, how it's mutated, and the commands that read it.

    Words of commands are relative to the case's folder, which is the working directory; all
    output goes to `out`. `{sha}` is the SHA-256 of the mutated file. `before` is a prediction that
    makes the file, as if it had been killed before it removed its tile store.
    """

    file: str
    mutate: Mutation
    commands: Sequence[str]
    before: str = ""


GROUPS = "--batch_size 1 --val_fraction 0.5 --data data --groups"
TRAIN = "train.py --config_file tiny.yaml --engine torchvision --device cpu --output_dir out"
BATCH = f"{TRAIN} --show_batch out/batch.png"
PREDICT = "inference.py --checkpoint run --device cpu --score_threshold 0 --output out/r.json"
ANNOTATE = "annotation.py --jobs 1 --output out/annotations.json --data"
TAKE_BACK = f"{ANNOTATE} fixed --corrected fix"
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
    "export.py {} --data data --annotations coco.json --output out --table out/a.csv --format coco",
    "export.py {} --data data --annotations coco.json --to_correct out/windows",
    "check_submission.py {} --data data",
]


def of(commands: Sequence[str], file: str) -> list[str]:
    """Return the commands for a file."""
    return [command.format(file) for command in commands]


def images(file: str) -> list[str]:
    """Return the commands that read an image."""
    return [f"{PREDICT} --images {file}", f"{PREDICT} --images {file} --tile 512 --overlap 64"]


# Several tiles, which are stored one by one.
STORED = (
    f"{PREDICT} --images images/slide.scn images/image.jpg --tile 100 --overlap 30 INPUT.ZOOM 1.0"
)
REGIONS = (
    f"{PREDICT} --images images/slide.scn --regions regions.geojson --tile 40 --overlap 12 "
    "INPUT.ZOOM 1.0"
)
SLIDES = f"{PREDICT.removesuffix('/r.json')} --images slides.csv"

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
            "webp.tif": either(mutate_tiff),
            "jpegxl.tif": either(mutate_tiff),
            "jpegxr.tif": either(mutate_tiff),
            "zstd.tif": either(mutate_tiff),
            "lzma.tif": either(mutate_tiff),
            "slide.ndpi": either(mutate_tiff, 0.8),
            "slide.scn": either(mutate_tiff),
            "slide.dcm": either(mutate_dicom),
        }.items()
    },
    **{
        f"mrxs {name}": Kind(f"images/slide/{name}", mutation, images("images/slide.mrxs"))
        for name, mutation in {
            "Slidedat.ini": mutate_text,
            "Index.dat": mutate_bytes,
            "Data0000.dat": mutate_bytes,
        }.items()
    },
    "regions": Kind("regions.geojson", either(mutate_json, 0.8), [REGIONS]),
    "slides.csv": Kind("slides.csv", mutate_text, [SLIDES]),
    "geojson": Kind("geo/train/a/a.geojson", either(mutate_json, 0.8), [f"{ANNOTATE} geo"]),
    "geojson.gz": Kind("gz/train/a/a.geojson.gz", either(mutate_gzip), [f"{ANNOTATE} gz"]),
    "corrected geojson": Kind("fix/a.geojson", either(mutate_json, 0.8), [TAKE_BACK]),
    "windows to correct": Kind("fix/index.json", either(mutate_json, 0.8), [TAKE_BACK]),
    "corrected windows": Kind(
        "fixed/corrected/annotations.json", either(mutate_json, 0.8),
        [f"{ANNOTATE} fixed", TAKE_BACK],
    ),
    "imagescope": Kind("xml/train/a/a.xml", either(mutate_text), [f"{ANNOTATE} xml"]),
    "label.png": Kind("png/train/a/label.png", either(mutate_png), [f"{ANNOTATE} png"]),
    "label.npy": Kind("npy/train/a/label.npy", either(mutate_npy), [f"{ANNOTATE} npy"]),
    "label.mat": Kind("mat/train/a/label.mat", either(mutate_matlab), [f"{ANNOTATE} mat"]),
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
    "sidecar truth": Kind(
        "annotated/r-truth.json", either(mutate_json, 0.85),
        ["evaluate.py annotated/r.json --data data --resamples 0 --json out/a.json",
         "export.py annotated/r.json --data data --output out",
         "report.py annotated/r.json --data data --output out/report.html"],
    ),
    "tile store": Kind(
        "out/r.parts/tiles.jsonl", either(mutate_lines), [STORED], before=STORED
    ),
    "tile store's origin": Kind(
        "out/r.parts/made-from.json", either(mutate_json), [STORED], before=STORED
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
    "old weights": Kind(
        "old.pth", either(mutate_pickle),
        [f"{TRAIN} --data data --weights old.pth SOLVER.MAX_ITER 1"],
    ),
    "safetensors": Kind(
        "weights.safetensors", mutate_bytes,
        [f"{TRAIN} --data data --weights weights.safetensors SOLVER.MAX_ITER 1"],
    ),
}  # fmt: skip
HAS_DETECTRON2 = find_spec("detectron2") is not None  # whose zoo has pickles
if HAS_DETECTRON2:
    KINDS["pickle"] = Kind(
        "weights.pkl",
        either(mutate_pickle),
        [
            f"{TRAIN} --data data --engine detectron2 --weights weights.pkl SOLVER.MAX_ITER 1 "
            "MODEL.TRUSTED_SHA256 {sha}"
        ],
    )
# train.py --resume writes into the run that it resumes, annotation.py --corrected into its data.
OUTPUTS = ("out", "run", "fixed")


def build_corpus(folder: Path, config: Path, run: Path | None = None) -> None:
    """Write valid files of every kind; `config` is of a tiny network, `run` a run of it."""
    import numpy as np
    import PIL.Image
    import scipy.io
    import tifffile
    import torch
    from safetensors.torch import save_file

    import annotation
    import export
    import inference
    import train
    from cellseg import runs
    from cellseg.config import load_config
    from cellseg.files import read_json
    from cellseg.network import get_engine
    from cellseg.read.tiff import read_labels
    from cellseg.read.window import read_image
    from cellseg.synthetic import write_dataset

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

    for codec in ("webp", "jpegxl", "jpegxr", "zstd", "lzma"):
        tifffile.imwrite(
            at / f"{codec}.tif", pixels, tile=(32, 32), compression=codec, photometric="rgb"
        )
    slide = np.tile(pixels, (3, 2, 1))[:128, :128]
    scanners.write_ndpi(at / "slide.ndpi", slide)
    scanners.write_scn(at / "slide.scn", slide)
    scanners.write_dicom(at / "slide.dcm", slide, "1.2.5.1", 0.25)
    scanners.write_mrxs(at / "slide.mrxs", slide)

    square, hole, far = (
        [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        for x, y, side in ((10, 20, 60), (30, 40, 9), (90, 90, 70))
    )
    geometry = {"type": "MultiPolygon", "coordinates": [[square, hole], [far]]}
    properties = {"objectType": "annotation", "classification": {"name": "Tumour"}}
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    features = {"type": "FeatureCollection", "features": [feature]}
    (folder / "regions.geojson").write_text(json.dumps(features))
    table = "path,mpp,regions\nimages/slide.scn,0.25,regions.geojson\nimages/image.jpg,,\n"
    (folder / "slides.csv").write_text(table)

    coco = data / "train__annot.json"
    export.main([str(coco), "--data", str(data), "--output", str(folder / "e")])
    outlines = next((folder / "e" / "geojson").rglob("a.geojson")).read_bytes()
    shutil.rmtree(folder / "e")
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ((3, 3), (20, 4), (9, 22)))
    region = f'<Region Id="1" Type="0"><Vertices>{vertices}</Vertices></Region>'
    xml = f'<Annotation Id="1" Name="class1"><Regions>{region}</Regions></Annotation>'
    rows = [(n, f"class{1 + n % 4}") for n in np.unique(labels)[1:].tolist()]
    table = "label,class\n" + "".join(f"{label},{name}\n" for label, name in rows)
    png, npy, mat = io.BytesIO(), io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(labels).save(png, "PNG")
    np.save(npy, labels)
    types = [1 + n % 4 for n in np.unique(labels)[1:].tolist()]
    scipy.io.savemat(mat, {"inst_map": labels, "inst_type": types, "id": np.unique(labels)[1:]})
    for name, files in {
        "geo": {"a.geojson": outlines},
        "gz": {"a.geojson.gz": gzip.compress(outlines)},
        "xml": {"a.xml": f"<Annotations>{xml}</Annotations>".encode()},
        "png": {"label.png": png.getvalue(), "classes.csv": table.encode()},
        "mat": {"label.mat": mat.getvalue()},
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
    fix = folder / "fix"
    words = f"{folder / 'own' / 'r.json'} --data {data} --to_correct {fix} --score_threshold 0"
    export.main(words.split())
    for path in fix.glob("*.geojson"):  # as another program writes it
        path.write_text(json.dumps(json.loads(path.read_text()), indent=0))
    (folder / "fixed").mkdir()
    annotation.main(["--data", str(folder / "fixed"), "--corrected", str(fix)])
    (folder / "fixed" / "train__annot.json").unlink()
    (folder / "own" / "r-list.json").write_text(
        (folder / "own" / "r-list.json").read_text().replace(f"{folder}/", "")
    )
    argv += " --dataset train --annotations " + str(coco)
    inference.main([*argv.split(), "--output", str(folder / "annotated" / "r.json")])
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
    torch.save(weights, folder / "old.pth", _use_new_zipfile_serialization=False)
    if HAS_DETECTRON2:
        cfg = load_config(config, "detectron2")
        cfg.MODEL.DEVICE = "cpu"
        network = get_engine("detectron2").build_network(cfg)
        arrays = {key: value.numpy() for key, value in network.state_dict().items()}
        (folder / "weights.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=2))
