"""Tables whose columns and folder are not the usual ones: a run reads its own again, and others by the same options."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.core.csv import read_csv

TINY = {"backbone": "test_resnet", "weights": "random", "image_size": 32, "precision": "32", "accelerator": "cpu",
        "workers": 0, "phases": "probe", "probe_views": 0, "report": "off", "quiet": True}  # fmt: skip
KINDS = {
    "classes": {"label_column": "kind"},
    "labels": {"label_column": "marks", "label_separator": ";", "task": "multilabel"},
    "flags": {"targets": "red,blue"},
    "numbers": {"targets": ["bright", "warm"]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixty pictures in one folder; in another a table with every kind of answer, paths in 'file'."""
    root = tmp_path_factory.mktemp("tables")
    (root / "pictures").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(60):
        levels = generator.integers(40, 215, 3)
        pixels = (levels + generator.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{number:02}.png")
        red, blue = int(levels[0] > 128), int(levels[2] > 128)
        marks = ";".join(name for name, value in (("red", red), ("blue", blue)) if value)
        split = "train" if number < 40 else "val"
        answers = ("light" if levels.sum() > 384 else "dark", marks, red, blue, levels.mean(), levels[0] - levels[2])
        rows.append((f"{number:02}.png", split, *answers))
    (root / "lists").mkdir()
    for name, mine in (("all.csv", rows), ("more.csv", rows[40:])):
        with (root / "lists" / name).open("w", encoding="utf-8", newline="") as stream:
            header = ("file", "split", "kind", "marks", "red", "blue", "bright", "warm")
            csv.writer(stream).writerows([header, *mine])
    return root


def trained(world, out, kind, monkeypatch):
    """Train with options that are relative to the world, then go elsewhere."""
    monkeypatch.chdir(world)
    asked = {"data": "lists/all.csv", "path_column": "file", "root": "pictures", **KINDS[kind]}
    tk.finetune(out=str(out), **asked, **TINY)
    assert f"root: {world / 'pictures'}" in (out / "config.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(out)


@pytest.fixture
def evaluated(tmp_path, command):
    """Evaluate `run` by these words; returns the rows of `predictions.csv`."""

    def evaluate(*words):
        words = ["evaluate", tmp_path / "run", *words, "--out", tmp_path / "e", "--report", "off", "--overwrite"]
        status, _, err = command(*words, "--quiet")
        assert status == 0, err
        assert json.loads((tmp_path / "e" / "metrics.json").read_text(encoding="utf-8"))["val"]["n"] == 20
        return sorted(tuple(row.values()) for row in read_csv(tmp_path / "e" / "predictions.csv"))

    return evaluate


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "numbers" else pytest.mark.slow) for kind in KINDS]
)
def test_a_run_reads_its_own_table_again(world, tmp_path, command, evaluated, monkeypatch, kind):  # fault 160
    trained(world, tmp_path / "run", kind, monkeypatch)
    own = world / "lists" / "all.csv"
    listed = read_csv(tmp_path / "run" / "predictions.csv")
    assert [row[1] for row in evaluated(own)] == sorted(row["path"] for row in listed if row["split"] == "val")
    words = ["--format", "safetensors", "--data", own, "--out", tmp_path / "m.safetensors"]
    status, printed, err = command("export", tmp_path / "run", *words)
    assert (status, err) == (0, "")
    assert f"100.0% the same on 20 pictures of {own}" in printed


def test_other_tables_are_read_by_the_options(world, tmp_path, command, evaluated, monkeypatch):  # fault 160
    run, root = tmp_path / "run", world / "pictures"
    own, more = world / "lists" / "all.csv", world / "lists" / "more.csv"
    trained(world, run, "numbers", monkeypatch)
    rows = evaluated(more, "--root", root)  # its column of paths is the run's
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(own.read_text(encoding="utf-8").replace("file,", "where,", 1), encoding="utf-8")
    assert rows == evaluated(renamed, "--root", root, "--path-column", "where")
    status, _, err = command("evaluate", run, more, "--out", tmp_path / "not")
    assert status == 3 and "none of its 20 files exists" in err  # relative to its own folder: nothing else was said
    status, _, err = command("evaluate", run, root, "--root", world, "--out", tmp_path / "not")
    assert status == 2 and "say how a manifest is read" in err
    words = ["--format", "safetensors", "--data", more, "--root", root, "--out", tmp_path / "m.safetensors"]
    status, _, err = command("export", run, *words)
    assert (status, err) == (0, "")
    status, _, err = command("calibrate", run, more, "--root", root, "--quiet")
    assert (status, err) == (0, "")


def test_the_scikit_learn_probe_is_compared_on_a_table_too(world, tmp_path, command):  # fault 160
    pytest.importorskip("skops", reason="the export extra is not installed")
    table = ["--data", world / "lists" / "all.csv", "--root", world / "pictures"]
    flags = ["--backbone", "transferkit/mini", "--image-size", "32", "--accelerator", "cpu"]
    words = ["probe", *table, "--path-column", "file", "--label-column", "kind", *flags, "--quiet", "--report", "off"]
    classifier = "sklearn.neighbors.KNeighborsClassifier"
    status, _, err = command(*words, "--classifier", classifier, "--out", tmp_path / "p")
    assert status == 0, err
    status, printed, err = command("export", tmp_path / "p", "--format", "skops", *table, "--out", tmp_path / "p.skops")
    assert status == 0, err
    assert "100.0% the same on 20 pictures of" in printed
