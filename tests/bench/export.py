"""ONNX over torch in eager mode and over the predictor's engine, and what of the answers stays the same.

    python tests/bench/export.py RUN [--data clothing/val] [--precision 32 fp16 int8 inside] [--batch 1 16]

Of numbers, differences are told in deviations of the training pictures, for each target; `--batch 0` leaves speed out.

RUN is exported in every precision named, to a temporary folder and by the verb's own steps, but without its limits.
Each file is compared with the run on pictures of its validation split (or of --data). Then all sides take turns on the
same batch of decoded pictures of the network's size: torch in eager mode (channels-last), the predictor's engine
(batch norm folded), each ONNX file in onnxruntime with as many threads; normalisation is counted on none. The file
with preprocessing inside gets decoded pictures of their own size instead, and fits and normalises them too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it

import numpy as np
import torch
from harness import compare, print_table

from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.transform import eval_transform
from transferkit.data.images.decode import decode_image
from transferkit.results.export.check import Exported, export_pictures
from transferkit.results.export.check import compare as check
from transferkit.results.export.onnx import LIMITS, build_onnx, load_onnx, quantise, write_onnx
from transferkit.results.predict.predictor import Predictor, load

KINDS = ("32", "fp16", "int8", "dynamic", "inside")
"""`int8` with ranges measured beforehand, `dynamic` with ranges per batch."""


def write(kind: str, predictor: Predictor, calibrating: tuple[str, ...], path: Path) -> Exported:
    """Export in one precision, and read it back."""
    module, info = predictor.module, predictor.info
    model = build_onnx(module, info, half=kind == "fp16")
    if kind in ("int8", "dynamic"):
        model = quantise(model, predictor, calibrating, static=kind == "int8")
    place: Literal["outside", "inside"] = "inside" if kind == "inside" else "outside"
    write_onnx(model, path, {}, info, preprocessing=place)
    return load_onnx(path, preprocessing=place)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="labelled pictures; default: the run's validation pictures")
    parser.add_argument("--precision", nargs="+", choices=KINDS, default=["32", "fp16", "int8", "inside"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    predictor = load(options.run)
    info = predictor.info
    pictures = export_pictures(options.run, info.targets, data=options.data, most=options.pictures)
    models: dict[str, Exported] = {}
    print(f"{info.backbone} at {info.preprocessing.image_size[0]} px, {len(pictures.compared)} {pictures.origin}")
    with tempfile.TemporaryDirectory(prefix="transferkit-bench-") as folder:
        for kind in options.precision:
            path = Path(folder) / f"{kind}.onnx"
            models[kind] = write(kind, predictor, pictures.calibrating, path)
            near = LIMITS["int8" if kind in ("int8", "dynamic") else "fp16" if kind == "fp16" else "32"].near
            result = check(models[kind], predictor, pictures.compared, inside=kind == "inside", near=near)
            words = result.words
            print(
                f"  onnx {kind:<8}{result.same} of {result.pictures} {words.answers} the same "
                f"({result.agreement:.2%}), {words.values} differ by at most {result.probability:.1e}, "
                f"logits by {result.logits:.1e}, {path.stat().st_size / 1e6:.1f} MB",
                flush=True,
            )
            if words.scale and kind != "inside":
                by_target(models[kind], predictor, pictures.compared)
        for size in filter(None, options.batch):
            speed(predictor, models, pictures.compared, size, options.rounds)


def by_target(model: Exported, predictor: Predictor, paths: tuple[str, ...]) -> None:
    """Print how far each target is from the run's, in deviations: largest, and root of the mean square."""
    info, task = predictor.info, predictor.module.task
    shown = np.stack([predictor.decode(path) for path in paths])
    images = normalise(torch.from_numpy(shown), info.preprocessing).contiguous().numpy()
    expected = task.predictions(torch.from_numpy(predictor.logits(shown)), info.calibration).numpy()
    numbers = np.concatenate(
        [rows for at in range(0, len(images), 16) if (rows := model(images[at : at + 16])[0]) is not None]
    )
    apart = np.abs(numbers - expected) / np.asarray(task.output.compared.scale)
    for at, name in enumerate(info.target_spec.names):
        root = float(np.sqrt(np.square(apart[:, at]).mean()))
        print(
            f"    {name}: at most {apart[:, at].max():.4f} deviations apart, {root:.4f} by the root of the mean square"
        )


def speed(predictor: Predictor, models: dict[str, Exported], paths: tuple[str, ...], size: int, rounds: int) -> None:
    """Print images/s of every side for one batch size."""
    config = predictor.info.preprocessing
    fit = eval_transform(config)
    decoded = [decode_image(path, min_side=config.decode_side) for path in paths[:size]]
    shown = np.stack([fit(picture) for picture in decoded])
    images = normalise(torch.from_numpy(shown), config)
    given = images.contiguous().numpy()

    def eager() -> None:
        with torch.inference_mode():
            predictor.module.task.predictions(predictor.module(images), predictor.info.calibration)

    def fitted_eager() -> None:
        with torch.inference_mode():
            for picture in decoded:
                one = normalise(torch.from_numpy(fit(picture)[None]), config)
                predictor.module.task.predictions(predictor.module(one), predictor.info.calibration)

    def one_by_one() -> None:
        for picture in decoded:
            models["inside"](picture[None])

    sides: dict[str, Callable[[], float]] = {
        "torch eager": rate(eager, size),
        "predictor's engine": rate(lambda: predictor.logits(shown), size),
    }
    for kind, model in models.items():
        if kind != "inside":
            sides[f"onnx {kind}"] = rate(partial(model, given), size)
    title = f"images/s, batches of {size}, {torch.get_num_threads()} threads"
    print_table(title, compare(sides, rounds=rounds), base="torch eager", unit="images/s")
    if "inside" in models:
        sides = {"fit, normalise, torch eager": rate(fitted_eager, size), "onnx inside": rate(one_by_one, size)}
        title = f"images/s, {size} decoded pictures one by one, preprocessing counted"
        print_table(title, compare(sides, rounds=rounds), base="fit, normalise, torch eager", unit="images/s")


def rate(call: Callable[[], object], size: int) -> Callable[[], float]:
    """Return a function that gives images/s of a call."""

    def measure() -> float:
        started = time.perf_counter()
        call()
        return size / (time.perf_counter() - started)

    return measure


if __name__ == "__main__":
    main()
