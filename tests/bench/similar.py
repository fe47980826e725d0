"""Retrieval by a run's own features, and what the search costs on many rows.

python tests/bench/similar.py retrieval RUN...          # recall@1, recall@5 and MAP@R of val in train
python tests/bench/similar.py search [ROWS] [WIDTH]     # drawn rows through the store; seconds and peak memory
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from transferkit.data.batches.dataset import Picture
from transferkit.features.extract.extract import make_compute
from transferkit.models.artifact import load_model
from transferkit.results.similar.gallery import Entry, Gallery, ModelFeatures, run_entries, unchanged
from transferkit.results.similar.nearest import Nearest, directions
from transferkit.results.similar.retrieval import KS, Retrieval, retrieval_figures


def retrieval(run: str, store: str | None) -> None:
    """Print how well the training pictures nearest to the validation pictures are of their class."""
    module, info = load_model(run)
    features = ModelFeatures(module, info.preprocessing, make_compute("cpu"), store)
    train, val = (unchanged(run_entries(run, split))[0] for split in ("train", "val"))
    counts = Counter(entry.label for entry in train)
    queries, failures = features.of([Picture(entry.path, entry.sha256) for entry in val])
    good = [at for at in range(len(val)) if at not in failures]
    nearest = Nearest(queries[good], max(*KS, *counts.values()))
    for places, rows in Gallery(train, features).blocks():
        nearest.see(places, rows)
    found = [
        Retrieval(
            np.array([train[place].label == val[at].label for place in nearest.of(number)[0]]), counts[val[at].label]
        )
        for number, at in enumerate(good)
    ]
    figures, left_out = retrieval_figures(found)
    told = ", ".join(f"{f.label} {f.value:.1%} ({f.ci[0]:.1%} to {f.ci[1]:.1%})" for f in figures if f.value and f.ci)
    print(f"{run}: {told}; {len(good)} val in {len(train)} train pictures, {left_out} left out; {features.words}")


class DrawnFeatures:
    """Stands for a model: rows that were drawn, read from a store as a model's are."""

    words = "drawn rows"

    def __init__(self, store: Path, width: int) -> None:
        from transferkit.features.store.spec import FeatureSpec, row_key
        from transferkit.features.store.store import FeatureStore

        self.spec = FeatureSpec("drawn", "0" * 64, "pooled", "own", {}, None, "32", {})
        self.store, self.width, self.key = FeatureStore(store, stays_open=True), width, row_key

    def write(self, hashes: list[str]) -> None:
        generator = np.random.default_rng(0)
        opened = self.store.open(self.spec)
        for start in range(0, len(hashes), 512):
            part = hashes[start : start + 512]
            rows = generator.normal(size=(len(part), self.width)).astype(np.float32)
            opened.add([self.key(sha256) for sha256 in part], rows)

    def of(self, pictures: list[Picture], progress: object = None) -> tuple[np.ndarray, dict[int, str]]:
        rows = np.empty((len(pictures), self.width), np.float32)
        assert not self.store.open(self.spec).read([self.key(picture.sha256) for picture in pictures], rows)
        return directions(rows), {}


def search(count: int, width: int) -> None:
    """Print what 100 pictures cost among many, for rows that lie in the store in order, and shuffled."""
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        features = DrawnFeatures(Path(folder), width)
        features.write(hashes)
        for order in ("in order", "shuffled"):
            names = list(np.random.default_rng(1).permutation(hashes)) if order == "shuffled" else hashes
            entries = [Entry(f"/pictures/{number}.jpg", str(name), "", "") for number, name in enumerate(names)]
            before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            nearest = Nearest(directions(np.random.default_rng(2).normal(size=(100, width)).astype(np.float32)), 5)
            for places, rows in Gallery(entries, features).blocks():  # type: ignore[arg-type]
                nearest.see(places, rows)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            seconds, size = time.process_time() - started, count * width / 2**18
            print(f"{count:,} rows of {width} ({size:,.0f} MB), {order}: {seconds:.1f} s of the processor for 100")
            print(f"  peak {peak / 1024:,.0f} MB, {(peak - before) / 1024:+,.0f} by the search")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("retrieval", "search"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--store")
    words = parser.parse_args()
    if words.what == "retrieval":
        for one in words.rest:
            retrieval(one, words.store)
    else:
        search(*(map(int, words.rest) if len(words.rest) == 2 else (int((words.rest or ["200000"])[0]), 512)))
