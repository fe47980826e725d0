"""Run directories for the tests of `export`: saved models and the pictures they would have been measured on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from transferkit.core.csv import csv_text
from transferkit.core.files import sha256_of_file
from transferkit.core.records import USUAL, Decoding
from transferkit.data.augment.normalise import normalise
from transferkit.data.images.decode import decode_image
from transferkit.data.images.resize import fit
from transferkit.models.artifact import save_model
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.heads.flat import LinearHead
from transferkit.models.module import TransferModule

CLASSES = ("cat", "dog", "Übung 3")

SIZES = ((40, 60), (64, 64), (90, 50), (33, 47))


def draw_pictures(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Draw pictures of several sizes, smooth enough to be read from JPEG: files ``00.jpg``, ..."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = folder / f"{number:02d}.jpg"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95)
        paths.append(path)
    return paths


def enliven(module: TransferModule, paths: list[str]) -> None:
    """Give the head random weights under which pictures differ in their classes."""
    generator = torch.Generator().manual_seed(0)
    config = module.data_config
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if isinstance(module.head, LinearHead):
            shown = [fit(decode_image(path, min_side=config.decode_side), config) for path in paths]
            rows = module.backbone(normalise(torch.from_numpy(np.stack(shown)), config)) @ module.head.linear.weight.T
            factor = 2.0 / rows.std(dim=0).mean()
            module.head.linear.weight.mul_(factor)
            module.head.linear.bias.copy_(-rows.mean(dim=0) * factor)


def make_run(
    run: Path,
    *,
    calibration: Calibration | None = None,
    decoding: Decoding = USUAL,
    metrics: dict | None = None,
    config: dict | None = None,
    **options,
) -> Path:
    """Write a run directory with a model of random weights, 20 validation and 12 training pictures."""
    run.mkdir(parents=True)
    options = {"backbone": "test_resnet", "weights": "random", "image_size": 32, **options}
    torch.manual_seed(0)
    module = TransferModule(options.pop("backbone"), len(CLASSES), class_names=CLASSES, **options).eval()
    module.backbone.data_config = dataclasses.replace(module.data_config, decoding=decoding)
    rows = [("split", "label", "path", "sha256")]
    for split, count, seed in (("val", 20, 1), ("train", 12, 2)):
        for path in draw_pictures(run.parent / f"{run.name}-pictures" / split / "cat", count, seed):
            rows.append((split, "cat", str(path), sha256_of_file(path)))
    enliven(module, [row[2] for row in rows[1:21]])
    save_model(run, module, calibration=calibration)
    (run / "pictures.csv").write_text(csv_text(rows), encoding="utf-8")
    (run / "metrics.json").write_text(json.dumps(metrics or {}), encoding="utf-8")
    (run / "config.yaml").write_text(yaml.safe_dump(config or {}), encoding="utf-8")
    return run


# Runs a script in an interpreter that has neither torch nor timm nor transferkit.
BLOCKED = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "transferkit", "cv2", "lightning"):
            raise ImportError(f"blocked: {name}")

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Likewise, and saves what the script makes of its pictures.
READING = BLOCKED.replace("sys.argv = sys.argv[1:]", "out, script, *pictures = sys.argv[1:]").replace(
    'runpy.run_path(sys.argv[0], run_name="__main__")',
    """
import numpy
sys.argv = [script]
read = runpy.run_path(script)["read"]
numpy.savez(out, *map(read, pictures))
""",
)


def read_by_example(script: Path, pictures: list[Path], out: Path) -> list[np.ndarray]:
    """Return what the script beside an ONNX file hands to the graph for each picture."""
    command = [sys.executable, "-I", "-c", READING, str(out), str(script), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        return [arrays[f"arr_{number}"] for number in range(len(pictures))]


def run_example(script: Path, pictures: list[Path]) -> list[list[str]]:
    """Run the script beside an ONNX file, and return what it prints of each picture."""
    command = [sys.executable, "-I", "-c", BLOCKED, str(script), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]
