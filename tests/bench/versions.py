"""Commands on the same pictures beside those of another checkout, as processes of their own.

    python tests/bench/versions.py CHECKOUT --data clothing/train --weights resnet18.safetensors [--images 600]

Seconds by the clock, start and imports included, after one call of each that fills what is remembered of the machine.
Either side has a cache and a run directory of its own; a store is new for every call.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import compare, print_table, seconds


def choose(data: Path, work: Path, count: int) -> Path:
    """Link the first pictures of every class, `count` in all at most."""
    classes = sorted(path for path in data.iterdir() if path.is_dir())
    for folder in classes:
        (work / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[: count // len(classes)]:
            (work / folder.name / path.name).symlink_to(path.resolve())
    return work


class Side:
    """Commands of one checkout.

    Args:
        checkout: Where the package is.
        work: A folder of its own.
        data: Pictures in folders of classes.
        options: Backbone, weights and size.
    """

    def __init__(self, checkout: Path, work: Path, data: Path, options: Sequence[str]) -> None:
        work.mkdir()
        self.checkout, self.work, self.data, self.options = checkout, work, data, options

    def run(self, *words: str) -> None:
        """Run a command."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.checkout),
            "XDG_CACHE_HOME": str(self.work / "cache"),
        }
        done = subprocess.run([sys.executable, "-m", "transferkit", *words, "--quiet"], env=environment,
                              cwd=self.checkout, check=False, capture_output=True, encoding="utf-8")  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr}")

    def verbs(self) -> dict[str, Callable[[], None]]:
        """Return the commands by name, each with what it needs of those above."""
        data, run = ("--data", str(self.data), *self.options), str(self.work / "run")
        again = ("--overwrite", "--report", "off")

        def features() -> None:
            shutil.rmtree(self.work / "store", ignore_errors=True)
            self.run("features", *data, "--store", str(self.work / "store"))

        def train(phases: str, epochs: int) -> Callable[[], None]:
            words = ("finetune", *data, "--phases", phases, "--epochs", str(epochs), "--out", run, *again)
            return lambda: self.run(*words)

        return {
            "features": features,
            "probe": lambda: self.run("probe", *data, "--store", str(self.work / "store"),
                                      "--out", str(self.work / "probe"), *again),
            "finetune, one epoch": train("finetune", 1),
            "finetune, the probe and three epochs": train("probe-finetune", 3),
            "evaluate": lambda: self.run("evaluate", run, str(self.data), "--out", str(self.work / "evaluate"), *again),
            "predict": lambda: self.run("predict", run, str(self.data), "--out", str(self.work / "p.csv"),
                                        "--overwrite"),
        }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--data", type=Path, required=True, help="class folders")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = ("--backbone", options.backbone, "--weights", options.weights, "--image-size", str(options.image_size))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = choose(options.data, work / "pictures", options.images)
        now = Side(Path(__file__).parents[2], work / "now", data, model)
        before = Side(options.before.resolve(), work / "before", data, model)
        verbs, others = now.verbs(), before.verbs()
        for verb in verbs:
            sides = {
                "before": lambda verb=verb: seconds(others[verb]),
                "now": lambda verb=verb: seconds(verbs[verb]),
            }
            print_table(verb, compare(sides, rounds=options.rounds), base="before", unit="s")


if __name__ == "__main__":
    main()
