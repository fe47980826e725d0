"""Crop, squash, pad or a rectangle: accuracy on drawn pictures whose label stands at the edge.

    python tests/bench/fit.py [--seeds 3] [--pictures 100] [--epochs 5]

Pictures are 96 x 288 pixels, a texture of noise with a mark of three by three cells at the left or the right end: a
cross, a ring or a square says the class, and another mark in the middle, which says nothing, is there to mislead. Each
way sees about as many pixels (9,216 of a square of 96, 9,408 of 56 x 168), so that it costs as much. One table: the
solved probe and the fine-tuned model on the test pictures, mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import transferkit as tk

CLASSES = {
    "cross": np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]),
    "ring": np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
    "corners": np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]]),
}
HEIGHT, WIDTH, CELL = 96, 288, 9
WAYS = {
    "crop, 96": {"image_size": 96, "fit": "crop"},
    "squash, 96": {"image_size": 96, "fit": "squash"},
    "pad, 96": {"image_size": 96, "fit": "pad"},
    "rectangle, 56x168": {"image_size": "56x168", "fit": "crop"},
    "rectangle padded, 56x168": {"image_size": "56x168", "fit": "pad"},
}


def picture(name: str, draws: np.random.Generator) -> Image.Image:
    """Return a picture of a class."""
    coarse = draws.normal(0, 1, (HEIGHT // 8, WIDTH // 8)).repeat(8, axis=0).repeat(8, axis=1)
    shade = 110 + 18 * coarse + draws.normal(0, 12, (HEIGHT, WIDTH))
    pixels = np.repeat(shade[..., None], 3, axis=2) + draws.uniform(-25, 25, 3)
    side = 3 * CELL
    end = draws.integers(2, 12)
    places = [(name, end if draws.random() < 0.5 else WIDTH - side - end)]
    places.append((str(draws.choice(list(CLASSES))), WIDTH // 2 - side // 2 + draws.integers(-20, 20)))
    for mark, left in places:
        top = draws.integers(2, HEIGHT - side - 2)
        cells = CLASSES[mark].repeat(CELL, axis=0).repeat(CELL, axis=1)
        part = pixels[top : top + side, left : left + side]
        part[cells == 1] += 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw(root: Path, pictures: int) -> None:
    """Write the set: so many training pictures of a class, half as many of val and of test."""
    draws = np.random.default_rng(0)
    for split, count in (("train", pictures), ("val", pictures // 2), ("test", pictures // 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(name, draws).save(root / split / name / f"{number}.png")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        draw(root / "set", options.pictures)
        print("| way | solved probe | fine-tuned | s |\n| --- | --- | --- | --- |")
        for way, size in WAYS.items():
            columns: dict[str, list[float]] = {"probe": [], "probe-finetune": [], "time": []}
            for seed in range(options.seeds):
                for phases in ("probe", "probe-finetune"):
                    run = tk.finetune(
                        data=root / "set", backbone="transferkit/mini", weights="bundled", phases=phases, seed=seed,
                        epochs=options.epochs, augment="light", report="off", calibrate="none", quiet=True,
                        store=root / "store", out=root / f"{way}-{phases}-{seed}", pixel_store="off", **size,
                    )  # fmt: skip
                    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
                    columns[phases].append(metrics["test"]["acc"])
                columns["time"].append(metrics["phases"][-1]["time_s"])
            cells = [f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
                     for values in (columns["probe"], columns["probe-finetune"])]  # fmt: skip
            print(f"| {way} | {cells[0]} | {cells[1]} | {statistics.mean(columns['time']):.0f} |", flush=True)


if __name__ == "__main__":
    main()
