"""Which way of training wins, by data set and number of labels: ways beside each other on the same pictures.

    python tests/bench/quality.py run SHARED OUT --weights resnet18.safetensors [--sets S ...] [--labels N ...] ...
    python tests/bench/quality.py table OUT
    python tests/bench/quality.py matrix OUT
    python tests/bench/quality.py rules OUT

SHARED holds `clothing`, `cells` and `nuclei`. A cell of the matrix is a data set and a number of labels per class; each
way trains on the same drawn pictures, by seed, and is measured on pictures set apart by the hash of their content, on
which nothing is ever chosen. A cell that is done is not done again. Several calls at once share the work.

With `--traces` the logits of val and test after each epoch are kept, of averages of weights and of mixtures with the
start, too, so that rules of choosing among them can be compared afterwards without training anything again; the time
that takes is not counted.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fcntl
import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from quality_sets import SETS, build, draw
from torch import Tensor

import transferkit as tk
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.data.images.corruption import CORRUPTIONS, STRENGTHS, corrupt
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.figures.classification import confidence_metrics
from transferkit.models.task import task_named
from transferkit.results.predict.predictor import Predictor, load
from transferkit.training.loop.early_stop import ByPictures, Candidate, Selection

LABELS = ("5", "20", "100", "all")
SEEDS = {"5": 5, "20": 5, "100": 3, "all": 3}
SIDE = 64
CLASSES = task_named("classification")
MANY = 300.0
"""Pictures of a class where all are given."""
SHIFTED = 150
"""Test pictures that are spoilt."""

SOLVED = {"name": "probe", "epochs": 0, "train": "head", "solve": True}
PLAIN = {"batch_size": 32, "batch_norm": "batch", "lr": 1e-3}
"""What options were before they went by the number of pictures."""
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "probe": {"phases": "probe"},
    "finetune": {"phases": "finetune"},
    "plain": {**PLAIN, "phases": "finetune"},
    "partial": {"phases": [SOLVED, {"name": "last", "epochs": 10, "train": ["layer4", "head"], "layer_decay": 0.75}]},
    "fixed": {**PLAIN, "phases": "probe-finetune"},
    "by-accuracy": {"monitor": "val_acc"},
    "by-loss": {"monitor": "val_loss"},
    "low": {"lr": 3e-4},
    "high": {"lr": 3e-3},
    "none": {"augment": "none"},
    "standard": {"augment": "standard"},
    "heavy": {"augment": "heavy"},
    "unsmoothed": {"label_smoothing": 0.0},
    "even": {"layer_decay": 1.0},
    "mixup": {"mixup": 0.2},
    "ema": {"ema": 0.99},
    "wise": {"interpolate": True},
    "bn-anew": {"recalibrate_bn": True},
    "long": {"epochs": 30},
}


def views(rows: list[tuple[Path, str]], config: DataConfig, root: Path, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures as a model is shown them ``(N, H, W, 3) uint8``, and the indices of their classes; made once."""
    if not file.is_file():
        with tempfile.TemporaryDirectory() as work:
            table = write_rows([(path, label, "train") for path, label in rows], Path(work), root)
            data = tk.ImageData(
                str(table),
                root=str(root),
                batch_size=64,
                augment="none",
                data_config=config,
                workers=0,
                val_split=0.0,
                test_split=0.0,
            )
            batches = list(data.evaluation_loader("train"))
        np.savez(file, images=np.concatenate([np.asarray(images) for images, _ in batches]),
                 labels=np.concatenate([np.asarray(labels) for _, labels in batches]))  # fmt: skip
    with np.load(file) as arrays:
        return arrays["images"], arrays["labels"]


def write_rows(rows: list[tuple[Path, str, str]], folder: Path, root: Path) -> Path:
    """Write a manifest of paths below `root`."""
    path = folder / "pictures.csv"
    rows = [(file.relative_to(root), label, split) for file, label, split in rows]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return path


class Trace(Callback):
    """Keeps the logits of val and test after every epoch, and of mixtures of the weights of epochs.

    Attributes:
        logits: By name (``"0"`` before the first epoch, ``"1"`` ...), of test pictures.
        seconds: That all of this took.
    """

    def __init__(self, images: Tensor, val: Tensor) -> None:
        self.images, self.val = images, val
        self.logits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.states: list[dict[str, Tensor]] = []
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what training starts from."""
        self._keep(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what an epoch made."""
        if not trainer.sanity_checking:
            self._keep(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure averages of the last epochs' weights, and mixtures of the start and the end."""
        started = time.perf_counter()
        network, epochs = copy.deepcopy(pl_module), len(self.states) - 1
        mixtures = {f"mean{n}": mean(self.states[-n:]) for n in sorted({2, 3, 5, max(2, epochs // 2)}) if n <= epochs}
        mixtures |= {f"wise{share}": mix(self.states[0], self.states[-1], share / 100) for share in (25, 50, 75)}
        for name, state in mixtures.items():
            network.load_state_dict(state, strict=False)
            self.logits[name] = self._logits(network)
        self.seconds += time.perf_counter() - started

    def _keep(self, module: LightningModule) -> None:
        started = time.perf_counter()
        self.states.append({key: value.detach().clone() for key, value in module.state_dict().items()})
        self.logits[str(len(self.states) - 1)] = self._logits(module)
        self.seconds += time.perf_counter() - started

    def _logits(self, module: LightningModule) -> tuple[np.ndarray, np.ndarray]:
        return logits_of(module, self.val), logits_of(module, self.images)


def logits_of(module: Any, images: Tensor) -> np.ndarray:
    """Return logits ``(N, C) float32``, in evaluation mode."""
    training = module.training
    module.eval()
    with torch.inference_mode():
        made = torch.cat([module(batch).float() for batch in images.split(100)])
    module.train(training)
    return made.cpu().numpy()


def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the average of weights."""
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[-1].items()
    }


def mix(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights between two, `share` of the second."""
    return {
        key: torch.lerp(start[key], value, share) if value.is_floating_point() else value for key, value in end.items()
    }


def spoilt(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield pictures spoilt in each way, at each strength."""
    for kind, strength in itertools.product(CORRUPTIONS, STRENGTHS):
        yield f"{kind}{strength}", np.stack([corrupt(image, kind, strength, at) for at, image in enumerate(images)])


def run_one(options: argparse.Namespace, name: str, labels: str, way: str, seed: int) -> dict[str, Any]:
    """Train and measure; return the row of the results."""
    folder = build(name, options.shared, options.out / "sets")
    rows, tests = draw(folder, None if labels == "all" else int(labels), seed)
    config = create_backbone(options.backbone, weights="random", image_size=SIDE).data_config
    images, truth = views(tests, config, folder, options.out / f"test-{name}-{SIDE}.npz")
    normalised = normalise(torch.from_numpy(images), config)
    with tempfile.TemporaryDirectory(dir=options.out) as work:
        path = write_rows(rows, Path(work), folder)
        val = [(file, label) for file, label, split in rows if split == "val"]
        shown, val_truth = views(val, config, folder, Path(work) / "val.npz")
        traced = options.traces and way != "probe"
        trace = Trace(normalised, normalise(torch.from_numpy(shown), config))
        started = time.perf_counter()
        run = tk.finetune(
            data=str(path), root=str(folder), backbone=options.backbone, weights=options.weights, image_size=SIDE,
            seed=seed, workers=0, precision="32", accelerator="cpu", quiet=True, report="off", allow_leaks=True,
            store=f"{work}/store", out=f"{work}/run", callbacks=[trace] if traced else [], **WAYS[way],
        )  # fmt: skip
        seconds = time.perf_counter() - started - trace.seconds
        predictor = load(run.path)
        module = predictor.module
        final = logits_of(module, normalised)
        row: dict[str, Any] = {
            "set": name, "labels": labels, "way": way, "seed": seed, "seconds": round(seconds, 2),
            "acc": float((final.argmax(1) == truth).mean()), "val_acc": run.metrics["val"]["acc"],
            "kept": run.metrics["selection"].get("kept"), "ece": calibration_error(predictor, final, truth),
            "right": "".join("01"[int(one)] for one in final.argmax(1) == truth),
        }  # fmt: skip
        if options.shifts:
            row["shifts"] = {
                key: float(
                    (logits_of(module, normalise(torch.from_numpy(bad), config)).argmax(1) == truth[::step]).mean()
                )
                for step in [max(1, len(images) // SHIFTED)]
                for key, bad in spoilt(images[::step])
            }
        shutil.rmtree(run.path)
        if not traced:
            return row
        file = options.out / "traces" / f"{name}-{labels}-{way}-{seed}.npz"
        file.parent.mkdir(exist_ok=True)
        arrays = {f"{part}_{key}": made.astype(np.float32) for key, (here, there) in trace.logits.items()
                  for part, made in (("val", here), ("test", there))}  # fmt: skip
        np.savez_compressed(file, val_truth=val_truth, truth=truth, test_final=final, **arrays)
    return row


def calibration_error(predictor: Predictor, logits: np.ndarray, truth: np.ndarray) -> float:
    """Return the ECE of calibrated probabilities on the test pictures."""
    probs = predictor.module.task.predictions(torch.from_numpy(logits), predictor.info.calibration)
    best, guess = probs.max(dim=1)
    labels = torch.from_numpy(truth)
    own = probs.gather(1, labels[:, None]).squeeze(1)
    return confidence_metrics(own, best, guess == labels)["ece"]


def finished(out: Path) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """Return the rows that are there, by cell, way and seed."""
    file = out / "results.jsonl"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()
    return {(row["set"], row["labels"], row["way"], row["seed"]): row for row in rows}


def run(options: argparse.Namespace) -> None:
    """Train what is missing."""
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    for seed in range(max(SEEDS.values())):
        for labels, name, way in itertools.product(options.labels, options.sets, options.ways):
            key = (name, labels, way, seed)
            if seed >= min(SEEDS[labels], options.seeds) or key in finished(options.out):
                continue
            with (options.out / "-".join(map(str, ("lock", *key)))).open("w", encoding="utf-8") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if key in finished(options.out):
                    continue
                row = run_one(options, *key)
                with (options.out / "results.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(*key, f"{row['acc']:.3f} {row['seconds']:.0f} s", flush=True)
                Path(lock.name).unlink()


def log_losses(logits: np.ndarray, truth: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the negative log-likelihood of each picture ``(N,)``."""
    scaled = torch.from_numpy(logits).double() / temperature
    losses: np.ndarray = torch.nn.functional.cross_entropy(scaled, torch.from_numpy(truth), reduction="none").numpy()
    return losses


def chosen_by(arrays: Any, labels: str) -> dict[str, str]:
    """Return what each rule of choosing takes: an epoch, from 0 before the first, or a mixture."""
    truth = arrays["val_truth"]
    val = {key[4:]: arrays[key] for key in arrays.files if key.startswith("val_") and key != "val_truth"}
    epochs = sorted((name for name in val if name.isdecimal()), key=int)
    acc = {name: float((made.argmax(1) == truth).mean()) for name, made in val.items()}
    loss = {name: log_losses(made, truth) for name, made in val.items()}
    tempered = {
        name: min(float(log_losses(made, truth, heat).mean()) for heat in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0))
        for name, made in val.items()
    }
    last = epochs[-1]
    selection = Selection("val_loss", ByPictures(MANY if labels == "all" else float(labels)), patience=None)
    for name in epochs:
        losses = CLASSES.picture_losses(torch.from_numpy(val[name]), torch.from_numpy(truth))
        at = int(name) - 1
        selection.offer(Candidate(at, float(losses.mean()), losses=losses, last=name == last))
    rules = {
        "pictures": str(selection.best_epoch + 1),
        "accuracy": min(epochs, key=lambda name: (-acc[name], loss[name].mean(), int(name))),
        "loss": min(epochs, key=lambda name: loss[name].mean()),
        "tempered loss": min(epochs, key=lambda name: tempered[name]),
        "last": last,
        "tempered, all": min(val, key=lambda name: tempered[name]),
    }
    rules |= {name: name for name in val if not name.isdecimal()}
    for level in (1.0, 1.7, 2.3):
        clear = {}
        for name in epochs[:-1]:
            gain = loss[last] - loss[name]
            clear[name] = gain.mean() / max(1e-9, gain.std(ddof=1) / np.sqrt(len(gain)))
        best = max(clear, key=lambda name: clear[name], default=last)
        rules[f"last, unless t > {level}"] = best if clear and clear[best] > level else last
        for end in (last, "wise50", "wise75", "mean5"):
            if end in loss:
                gain = loss["0"] - loss[end]
                better = gain.mean() / max(1e-9, gain.std(ddof=1) / np.sqrt(len(gain)))
                name = "last" if end == last else end
                rules[f"start, unless {name} t > {level - 1:.1f}"] = end if better > level - 1 else "0"
    return rules


def rules(options: argparse.Namespace) -> None:
    """Print what rules of choosing an epoch or a mixture are worth on test pictures, by cell and way."""
    table: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for name, labels, way, seed in finished(options.out):
        file = options.out / "traces" / f"{name}-{labels}-{way}-{seed}.npz"
        with np.load(file) as arrays:
            if not any(key == "val_1" for key in arrays.files):
                continue
            truth, row = arrays["truth"], table.setdefault((name, labels, way), {})
            for rule, key in chosen_by(arrays, labels).items():
                row.setdefault(rule, []).append(float((arrays[f"test_{key}"].argmax(1) == truth).mean()))
            best = max(
                float((arrays[key].argmax(1) == truth).mean()) for key in arrays.files if key.startswith("test_")
            )
            row.setdefault("(best on test)", []).append(best)
    names = list(dict.fromkeys(rule for row in table.values() for rule in row))
    print(f"({machine()})\n\n| rule | " + " | ".join(" ".join(key) for key in table) + " | mean |")
    print("|---" * (len(table) + 2) + "|")
    for rule in names:
        means = [100 * statistics.mean(row[rule]) if rule in row else float("nan") for row in table.values()]
        print(f"| {rule} | " + " | ".join(f"{value:.1f}" for value in means) + f" | {np.nanmean(means):.2f} |")


def interval(differences: list[np.ndarray]) -> tuple[float, float, float]:
    """Return a mean difference and its 95 % interval, by drawing seeds and pictures anew."""
    draws = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        chosen = draws.integers(0, len(differences), len(differences))
        means.append(np.mean([draws.choice(differences[at], len(differences[at])).mean() for at in chosen]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean([one.mean() for one in differences])), float(low), float(high)


def table(options: argparse.Namespace) -> None:
    """Print a row per cell and way: mean accuracy, range, difference to the default with its interval, seconds."""
    rows = finished(options.out)
    print(
        f"({machine()})\n\n| set | labels | way | seeds | accuracy | range | {options.base} minus it | ECE | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, labels in itertools.product(SETS, LABELS):
        for way in dict.fromkeys(way for _, _, way, _ in rows):
            own = {seed: row for (at, n, w, seed), row in rows.items() if (at, n, w) == (name, labels, way)}
            if not own:
                continue
            accs = [row["acc"] for row in own.values()]
            pairs = [(rows[name, labels, options.base, seed], row) for seed, row in own.items()
                     if (name, labels, options.base, seed) in rows]  # fmt: skip
            gap = ""
            if way != options.base and pairs:
                bits = [np.array(list(a["right"]), int) - np.array(list(b["right"]), int) for a, b in pairs]
                gap = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in interval(bits)))
            seconds, ece = (
                statistics.mean(row.get(key, math.nan) for row in own.values()) for key in ("seconds", "ece")
            )
            print(f"| {name} | {labels} | {way} | {len(accs)} | {100 * statistics.mean(accs):.1f} | "
                  f"{100 * min(accs):.1f} to {100 * max(accs):.1f} | {gap} | {100 * ece:.1f} | {seconds:.0f} |"
                  )  # fmt: skip


def matrix(options: argparse.Namespace) -> None:
    """Print the mean accuracy of each way in each cell, of seeds that all of them have, and seconds over the base's."""
    rows = finished(options.out)
    ways = options.ways
    print(f"({machine()})\n\n| set | labels | seeds | {' | '.join(ways)} |\n|---|---|---|{'---|' * len(ways)}")
    means: list[list[float]] = []
    seconds: list[list[float]] = []
    for labels, name in itertools.product(LABELS, SETS):
        cells = [[rows.get((name, labels, way, seed)) for way in ways] for seed in range(max(SEEDS.values()))]
        whole = [[one for one in cell if one is not None] for cell in cells if None not in cell]
        if whole:
            means.append([100 * statistics.mean(one["acc"] for one in column) for column in zip(*whole, strict=True)])
            seconds.append([statistics.mean(one["seconds"] for one in column) for column in zip(*whole, strict=True)])
            shown = " | ".join(f"{value:.1f}" for value in means[-1])
            print(f"| {name} | {labels} | {len(whole)} | {shown} |")
    if means:
        columns = [statistics.mean(column) for column in zip(*means, strict=True)]
        print(f"| mean | | | {' | '.join(f'{value:.1f}' for value in columns)} |")
        base = ways.index(options.base) if options.base in ways else 0
        ratios = [statistics.geometric_mean(one[at] / one[base] for one in seconds) for at in range(len(ways))]
        print(f"| time over {ways[base]} | | | {' | '.join(f'{value:.2f}' for value in ratios)} |")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    running = verbs.add_parser("run")
    running.add_argument("shared", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--backbone", default="resnet18", help="OUT is of one of them")
    running.add_argument("--weights", default="bundled", help="such as a file")
    for name, known in (("sets", SETS), ("labels", LABELS), ("ways", tuple(WAYS))):
        running.add_argument(f"--{name}", nargs="+", choices=known, default=list(known))
    running.add_argument("--seeds", type=int, default=5, help="at most so many")
    running.add_argument("--threads", type=int, default=1)
    running.add_argument("--traces", action="store_true", help="keep the logits of every epoch")
    running.add_argument("--shifts", action="store_true", help="measure on spoilt pictures, too")
    running.set_defaults(call=run)
    printing = verbs.add_parser("table")
    printing.add_argument("out", type=Path)
    printing.add_argument("--base", default="default")
    printing.set_defaults(call=table)
    crossing = verbs.add_parser("matrix")
    crossing.add_argument("out", type=Path)
    crossing.add_argument("--ways", nargs="+", default=["default", "probe", "finetune", "plain"])
    crossing.add_argument("--base", default="plain", help="whose seconds are 1")
    crossing.set_defaults(call=matrix)
    choosing = verbs.add_parser("rules")
    choosing.add_argument("out", type=Path)
    choosing.set_defaults(call=rules)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
