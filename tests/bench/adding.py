"""Classes added to a solved probe, beside a probe on all of them at once and beside logistic regression.

    python tests/bench/adding.py --data clothing/ --weights resnet18.safetensors [--draws 3] [--out runs/adding]

Of every draw three classes come later. Prints the largest difference of a weight between both ways at the strength of
the first run, and accuracy on `val`, which nothing was chosen on. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from harness import machine
from safetensors.numpy import load_file

import transferkit as tk
from transferkit.cli.main import main

LATER = 3


def probe(words: list[str], out: Path) -> None:
    """Run `probe`, once."""
    if not (out / "metrics.json").exists():
        status = main(["probe", *words, "--out", str(out), "--calibrate", "none", "--report", "off", "--quiet"])
        if status:
            raise SystemExit(status)


def folder(data: Path, names: list[str], out: Path) -> Path:
    """Return a folder of links to some of the classes, train and val."""
    for split in ("train", "val"):
        (out / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            link = out / split / name
            if not link.exists():
                link.symlink_to((data / split / name).resolve(), target_is_directory=True)
    return out


def right(run: Path, photos: list[Path]) -> str:
    """Share of the photos that a run names as their folder."""
    labels = [one.label for one in tk.load(run).predict(list(map(str, photos)))]
    hits = sum(label == photo.parent.name for label, photo in zip(labels, photos, strict=True))
    return f"{hits / len(photos):.1%}"


def compare() -> None:
    """Fit, and print a row per draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/adding"))
    options = parser.parse_args()
    common = ["--store", str(options.out / "store")]
    made = ["--backbone", "resnet18", "--weights", options.weights, "--image-size", str(options.image_size), *common]
    classes = sorted(path.name for path in (options.data / "train").iterdir())
    whole = ["--data", str(options.data), *made]
    probe([*whole, "--classifier", "logistic"], options.out / "logistic")
    probe([*whole, "--classifier", "ridge"], options.out / "ridge")
    photos = sorted(path for path in (options.data / "val").glob("*/*") if path.is_file())
    print(machine())
    print(f"ten classes at once, each at its own strength: ridge {right(options.out / 'ridge', photos)}, logistic "
          f"regression {right(options.out / 'logistic', photos)} of {len(photos)} photos of val\n")  # fmt: skip
    print("| added later | largest difference of a weight, of a bias | seven, before | ten, added | ten, at once | "
          "of the seven, added | of the three, added |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for seed in range(options.draws):
        later = sorted(random.Random(seed).sample(classes, LATER))
        first = [name for name in classes if name not in later]
        place = options.out / str(seed)
        seven, three = folder(options.data, first, place / "first"), folder(options.data, later, place / "later")
        probe(["--data", str(seven), "--classifier", "ridge", *made], place / "seven")
        probe(["--add", str(three), "--to", str(place / "seven"), *common], place / "ten")
        chosen = json.loads((place / "seven" / "metrics.json").read_text(encoding="utf-8"))["probe"]["strength"]
        recipe = place / "strength.yaml"
        recipe.write_text(f"classifier_args:\n  strength: {chosen}\n", encoding="utf-8")
        probe(["--config", str(recipe), *whole, "--classifier", "ridge"], place / "at-once")
        added, once = (load_file(place / name / "model.safetensors") for name in ("ten", "at-once"))
        far = [np.abs(added[f"head.linear.{part}"] - once[f"head.linear.{part}"]).max() for part in ("weight", "bias")]
        old, new = ([photo for photo in photos if photo.parent.name in names] for names in (first, later))
        shares = [right(place / "seven", old), right(place / "ten", photos), right(place / "at-once", photos),
                  right(place / "ten", old), right(place / "ten", new)]  # fmt: skip
        print(f"| {', '.join(later)} | {far[0]:.1e}, {far[1]:.1e} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    compare()
