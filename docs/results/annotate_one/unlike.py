"""Print how unlike an annotated scan others are: of other data sets, inverted (docs/annotate_one.md, notices).

python docs/results/annotate_one/unlike.py <prepared data set> [<another> ...]

The first scan of the first folder is annotated; the next three, one of them inverted too, and the first scan of each
other folder are compared with it, every third slice: similarity (logits), distance of intensities (SD).
"""

from __future__ import annotations

import sys
from pathlib import Path

from bundle.command_line.configs import parsed
from monai.data import MetaTensor


def main(folders: list[str]) -> None:
    """Print a line for each scan."""
    images = [sorted(Path(folder, "images").glob("*.nii.gz")) for folder in folders]
    label = Path(folders[0], "labels", images[0][0].name)
    parser = parsed(["inference.yaml"], {"support_image": str(images[0][0]), "support_label": str(label)})
    inferer, network = parser.get_parsed_content("inferer"), parser.get_parsed_content("network").eval()
    read = parser.get_parsed_content("preprocessing")
    print("scan, similarity, distance of intensities")
    for path in [*images[0][1:4], *(others[0] for others in images[1:])]:
        volume = read({"image": str(path)})["image"].as_tensor()[None, ..., ::3]
        for name, sign in ((path.name, 1), (f"{path.name}, inverted", -1)):
            if sign == 1 or path == images[0][1]:
                meta = inferer(MetaTensor(sign * volume), network).meta
                print(f"{name}, {float(meta['explained']):.2f}, {float(meta['intensity_distance']):.2f}", flush=True)


if __name__ == "__main__":
    folders, sys.argv = sys.argv[1:], sys.argv[:1]
    main(folders)
