"""Predictions over the feature engine's speed, on the same backbone and pictures; the goal is 0.9.

    python tests/bench/predict.py --data clothing/val [--backbone resnet18] [--weights FILE] [--image-size 224]

One side is `Predictor.stream` over the files of a folder: reading, decoding, backbone, head, probabilities, a row for
each. The other is `extract_pictures` into an empty store: reading, decoding, backbone, and writing the
rows. Its files are hashed beforehand and that is not counted; the predictor hashes them itself. Start-up, loading and
the first batches, which warm up, are counted on neither side.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it

from harness import compare, print_table

from transferkit.data.batches.dataset import Picture
from transferkit.data.images.reading import hash_images
from transferkit.data.scan.named import find_pictures
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import frozen_backbone, make_compute, make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.models.artifact import save_model
from transferkit.models.module import TransferModule
from transferkit.results.predict.predictor import load


class Bench:
    """Both sides, in one process."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.work = work
        self.calls = 0
        self.paths = list(find_pictures([str(options.data)]))
        hashes = hash_images(self.paths, workers=available_cores())
        self.pictures = [Picture(read.path, str(read.sha256)) for read in hashes if read.sha256 is not None]
        self.frozen = frozen_backbone(options.backbone, options.weights, options.image_size, 0)
        module = TransferModule(options.backbone, options.classes, weights=options.weights,
                                image_size=options.image_size)  # fmt: skip
        (work / "run").mkdir()
        save_model(work / "run", module)
        self.predictor = load(work / "run", accelerator=options.accelerator, precision=options.precision)
        self.compute = make_compute(options.accelerator, options.precision)

    def predict(self) -> float:
        """Images/s of predictions."""
        started = time.perf_counter()
        count = sum(prediction.error is None for prediction in self.predictor.stream(self.paths))
        return count / (time.perf_counter() - started)

    def extract(self) -> float:
        """Images/s of extraction into an empty store."""
        self.calls += 1
        backbone = self.frozen.backbone
        store = FeatureStore(str(self.work / f"store{self.calls}"))
        views = make_views(backbone.data_config, 0, "none", 0)
        started = time.perf_counter()
        found = extract_pictures(self.pictures, self.frozen, find_taps(backbone), views, store, self.compute)
        return found.computed / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random", help="a file, 'pretrained' or 'random'")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options, Path(work))
        sides = {"feature engine, empty store": bench.extract, "predict": bench.predict}
        figures = compare(sides, rounds=options.rounds)
        title = f"{options.backbone} at {options.image_size}, {len(bench.paths)} pictures"
        print_table(title, figures, base="feature engine, empty store", unit="images/s")


if __name__ == "__main__":
    main()
