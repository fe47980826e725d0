"""Record the loss and the LRs of every step of one tiny run per way of fine-tuning: `python tests/golden/record.py`.

Whoever moves these curves on purpose records them anew and says so in the changelog. Only the public door is used, so
that the script also runs on other releases: `PYTHONPATH=OTHER_TREE python tests/golden/record.py OUT`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
from PIL import Image

import transferkit

HERE = Path(__file__).parent

FIXED = {
    "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 8, "precision": "32",
    "accelerator": "cpu", "workers": 0, "seed": 0, "report": "off", "quiet": True,
}  # fmt: skip
RUNS = {
    "probe": {"phases": "probe", "probe": "sgd", "epochs": 3},
    "finetune": {"phases": "finetune", "epochs": 3, "augment": "none", "schedule": "one_cycle"},
    "probe-finetune": {"phases": "probe-finetune", "probe_epochs": 1, "epochs": 2},
    "solved": {"phases": "probe-finetune", "epochs": 2, "backbone": "transferkit/mini", "weights": "bundled"},
    "gradual": {"phases": "gradual", "probe_epochs": 1, "epochs": 5},
    "sgdr": {"phases": "finetune", "epochs": 6, "optimizer": "sgd",
             "schedule": {"name": "sgdr", "cycle_epochs": 2, "cycle_mult": 2}},
}  # fmt: skip
"""Options of each run, by the name of its file."""


def here() -> dict[str, object]:
    """Return what decides whether floats come out the same to the last bit."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": name or platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core: the number of threads decides the order of sums."""
    if not hasattr(os, "sched_setaffinity"):  # the numbers are compared less strictly there
        yield
        return
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def draw(root: Path) -> Path:
    """Draw discs, boxes and stripes of 40 px by arithmetic alone, 12 to train and 6 to validate per class."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            row, column = generator.integers(12, 28, 2)
            shapes = {
                "box": (abs(y - row) < 9) & (abs(x - column) < 9),
                "disc": (y - row) ** 2 + (x - column) ** 2 < 90,
                "stripes": (y + row) % 6 < 2,
            }
            for label, shape in shapes.items():
                pixels = generator.integers(0, 90, (40, 40, 3), dtype=np.uint8)
                pixels[shape] = generator.integers(150, 255, 3)
                path = root / split / label / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


class Recorder(L.Callback):
    """Collects the training loss and every layer group's LR, step by step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.lrs: dict[str, list[float]] = {}
        self.threads = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.threads = torch.get_num_threads()
        self.losses.append(outputs["loss"].item())
        for name, lr in {group["name"].rsplit(".", 1)[0]: group["lr"] for group in
                         trainer.optimizers[0].param_groups}.items():  # fmt: skip
            self.lrs.setdefault(name, []).append(lr)


def run(name: str, folder: Path, work: Path) -> dict[str, object]:
    """Fine-tune on `folder` with the options of `name`; return its curves."""
    recorder = Recorder()
    options = {**FIXED, **RUNS[name], "data": str(folder), "out": str(work / name), "store": str(work / "store")}
    with one_core():
        transferkit.finetune(callbacks=[recorder], **options)
    return {"recorded_on": {**here(), "threads": recorder.threads}, "loss": recorder.losses, "lr": recorder.lrs}


def main(out: Path = HERE) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = draw(Path(directory) / "shapes")
        for name in RUNS:
            curves = run(name, folder, Path(directory))
            text = json.dumps(curves).replace('}, "', '},\n"').replace('], "', '],\n"')
            (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
