"""Run directories for the report's tests, written by hand: what a finished run leaves behind, without the training."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

HOSTILE = "<script>alert(1)</script>"
CLASSES = (HOSTILE, "a&b", "$x$")
CONFUSION = [[5, 1, 0], [0, 4, 2], [0, 0, 0]]


def figures(names=CLASSES, confusion=CONFUSION, **changes):
    """Figures of one split, from a confusion matrix by hand."""
    matrix = np.array(confusion)
    n, right, called = matrix.sum(1), matrix.diagonal(), matrix.sum(0)
    acc = right.sum() / matrix.sum()

    def ratio(a, b):
        return None if b == 0 else float(a / b)

    rows = {
        name: {"recall": ratio(right[i], n[i]), "precision": ratio(right[i], called[i]),
               "f1": ratio(2 * right[i], n[i] + called[i]) if n[i] else None, "n": int(n[i])}
        for i, name in enumerate(names)
    }  # fmt: skip
    return {
        "acc": float(acc), "acc_ci": [max(0.0, acc - 0.25), min(1.0, acc + 0.2)], "acc_top5": None, "n": int(n.sum()),
        "balanced_acc": 0.75, "balanced_acc_ci": [0.5, 0.9], "f1_macro": 0.7, "f1_macro_ci": [0.5, 0.85],
        "loss": 0.5, "loss_ci": [0.3, 0.8], "ece": 0.061, "per_class": rows, "confusion": matrix.tolist(),
        "reliability": [{"low": i / 15, "high": (i + 1) / 15, "n": 2 * (i > 8),
                         "confidence": (i + 0.5) / 15 if i > 8 else None, "accuracy": 0.75 if i > 8 else None}
                        for i in range(15)],
        "uncalibrated": {"loss": 0.61, "ece": 0.142},
        **changes,
    }  # fmt: skip


def plan(epochs=4, groups=("stem", "layer1", "head")):
    steps = list(range(0, 2 * epochs))
    return {
        "steps_per_epoch": 2, "epochs": epochs,
        "groups": [{"name": name, "parameters": 1000} for name in groups],
        "phases": [{"name": "probe", "epochs": 0, "train": "head", "solve": True, "trainable_parameters": 12},
                   {"name": "finetune", "epochs": epochs, "train": "all", "trainable_parameters": 3000}],
        "lr": {"step": steps, **{name: [1e-3 * (at + 1) * (1 - step / (2 * epochs)) for step in steps]
                                 for at, name in enumerate(groups)}},
    }  # fmt: skip


def metrics(**changes):
    return {
        "val": figures(), "test": figures(),
        "calibration": {"method": "temperature", "temperature": 1.4, "fitted_on": "val", "folds": 5, "n": 12},
        "selection": {"monitor": "val_acc", "epoch": 2, "kept": "epoch 2", "stopped_early": False,
                      "note": "the epoch was chosen on val, so val is optimistic; test was not looked at before"},
        "phases": [{"epochs": 0, "name": "probe", "train_acc": 1.0, "val_acc": 0.6, "val_loss": 0.9, "time_s": 2.0},
                   {"name": "finetune", "epochs": 4, "train_acc": 0.9, "val_acc": 0.7, "train_loss": 0.4,
                    "val_loss": 0.5, "images_per_s": 100.0, "time_s": 20.0}],
        "time_s": 23.0, "environment": {"python": "3.12", "torch": "2.11", "device": "cpu, 2 threads", "reason": None},
        **changes,
    }  # fmt: skip


def history(epochs=4, phase="finetune"):
    rows = [("phase", "epoch", "step", "train_loss", "train_acc", "val_loss", "val_acc")]
    return rows + [(phase, at, 2 * at, 1 / (at + 1), 1 - 0.5 / (at + 1), 1.2 / (at + 1), 0.7) for at in range(epochs)]


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def draw(path, seed, side=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (side, side + 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    return str(path)


def write_run(run, *, data, config=None, measured=None, names=CLASSES, confusion=CONFUSION, rows=None, **files):
    """Write a fine-tuning run; `data` is where its pictures lie, drawn or not."""
    run.mkdir(parents=True)
    data = Path(data)
    options = {"data": str(data), "backbone": "test_resnet", "epochs": 4, "phases": "probe-finetune", **(config or {})}
    (run / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    (run / "metrics.json").write_text(json.dumps(measured or metrics()), encoding="utf-8")
    counts = {"train": {name: 10 * (at + 1) for at, name in enumerate(names)},
              "test": {name: sum(row) for name, row in zip(names, confusion, strict=True)}}  # fmt: skip
    contents = {"classes": list(names), "counts": counts, "digest": "d", "skipped": [], "notes": []}
    (run / "data.json").write_text(json.dumps({**contents, **files.pop("data_json", {})}), encoding="utf-8")
    (run / "plan.json").write_text(json.dumps(files.pop("plan", plan())), encoding="utf-8")
    table(run / "history.csv", files.pop("history", history()))
    pictures = [("split", "label", "path", "sha256")]
    for at, name in enumerate(names):
        pictures += [("train", name, str(data / "train" / str(at) / f"{i}.jpg"), f"{i:064x}") for i in range(5)]
    table(run / "pictures.csv", pictures)
    table(run / "predictions.csv", [PREDICTIONS, *(predictions(data, names, confusion) if rows is None else rows)])
    assert not files
    return run


PREDICTIONS = ("split", "path", "label", "predicted", "probability", "label_probability")


def predictions(data, names=CLASSES, confusion=CONFUSION, split="test"):
    found = []
    for true, row in enumerate(confusion):
        for guess, count in enumerate(row):
            for _ in range(count):
                number = len(found)
                sure = 0.5 + 0.01 * number
                own = sure if true == guess else 0.1
                path = data / split / str(true) / f"{number}.jpg"
                found.append((split, str(path), names[true], names[guess], f"{sure:.6f}", f"{own:.6f}"))
    return found


def draw_all(run):
    """Draw every picture that a run names."""
    for name in ("pictures.csv", "predictions.csv"):
        with (run / name).open(encoding="utf-8") as stream:
            for seed, row in enumerate(csv.DictReader(stream)):
                draw(Path(row["path"]), seed)


class Page(HTMLParser):
    """A page, read strictly: every element closed in order, and what the tests ask about."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).replace("\u202f", " ").split())

    def all(self, tag, **wanted):
        return [
            attrs for name, attrs in self.elements
            if name == tag and all(attrs.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]  # fmt: skip
