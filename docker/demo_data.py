"""Write small image data for four clients that differ in kind, and for the server: ``python demo_data.py DIR``.

Scikit-learn's handwritten digits. Two clinics have low digits and two have high ones; clinic-b and clinic-d lack one
class each; two have image folders, two have an npz file. ``proxy`` is the server's: all digits, without labels.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLINICS = {
    "clinic-a": ("folder", (0, 1, 2, 3, 4)),
    "clinic-b": ("npz", (0, 1, 2, 4)),
    "clinic-c": ("folder", (5, 6, 7, 8, 9)),
    "clinic-d": ("npz", (5, 6, 8, 9)),
}
PER_CLASS = 50
PROXY = 300


def main(directory: Path) -> None:
    """Write all data sets, from disjoint images; the same at every call."""
    digits = load_digits()
    images, labels = (digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    free = np.ones(len(labels), dtype=bool)
    for name, (kind, classes) in CLINICS.items():
        chosen = np.concatenate([np.flatnonzero(free & (labels == digit))[:PER_CLASS] for digit in classes])
        free[chosen] = False
        if kind == "npz":
            (directory / name).mkdir(parents=True, exist_ok=True)
            np.savez_compressed(directory / name / "images.npz", x=images[chosen], y=labels[chosen])
        else:
            for i in chosen:
                save(images[i], directory / name / str(labels[i]) / f"{i}.png")
        print(f"{name}: {len(chosen)} images as {kind}, digits {', '.join(map(str, classes))}")
    for i in np.flatnonzero(free)[:PROXY]:
        save(images[i], directory / "proxy" / f"{i}.png")
    print(f"proxy: {PROXY} images without labels")


def save(image: np.ndarray, path: Path) -> None:
    """Write one image, and the folders above it where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python demo_data.py DIR")
    main(Path(sys.argv[1]))
