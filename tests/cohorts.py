"""Results of many slides, as `inference.py --images TABLE` writes them."""

import json


def write_cohort(folder, slides, classes):
    """Write slides `{name: (path, (height, width), detections)}` as of a command elsewhere.

    A name is that of the path's file, with the folders that tell it from others. The image id of
    all detections becomes 1, that of a slide's only image.
    """
    lines = ["path,folder,cells,mm2,seconds,error"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, (path, (height, width), detections) in slides.items():
        place = folder / name
        place.mkdir(parents=True)
        for what, value in (
            ("", [{**each, "image_id": 1} for each in detections]),
            ("-list", [{"file_name": str(path), "id": 1, "height": height, "width": width}]),
            ("-classes", [{"id": n, "name": each} for n, each in enumerate(classes, 1)]),
        ):
            (place / f"images-results{what}.json").write_text(json.dumps(value))
        lines.append(f"{path},study/{name},{len(detections)},,0.5,")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
