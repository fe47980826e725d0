"""Heads of masks that are solved, through the verbs: a mask model stands before anything is trained."""

import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.cli.main import main
from transferkit.core.csv import read_csv
from transferkit.results.predict.predictor import load

SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures whose one half is red, a little wider than high; masks of two numbers."""
    folder, generator = tmp_path_factory.mktemp("halves"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 10), ("test", 4)):
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((56, 72), dtype=np.uint8)
            mask[(np.s_[:28], np.s_[28:], np.s_[:, :36], np.s_[:, 36:])[number % 4]] = 1
            pixels = np.where(mask[..., None] == 1, (190, 60, 50), (40, 70, 180)) + generator.normal(0, 8, (56, 72, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    return {
        "data": str(data), "backbone": "transferkit/mini", "weights": "bundled", "image_size": SIDE, "batch_size": 4,
        "workers": 0, "accelerator": "cpu", "precision": "32", "quiet": True,
        "store": str(tmp_path_factory.mktemp("store")),
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs") / "probe")
    return tk.finetune(**options, head="hypercolumns", phases="probe", report="off", out=out)


def test_a_mask_model_stands_before_anything_is_trained(run, data):
    assert run.metrics["test"]["miou"] > 0.9
    (phase,) = run.metrics["phases"]
    assert phase["solver"] == "L-BFGS on cached cells"
    assert phase["fitted_on"].endswith("cells of 10 training pictures")
    assert phase["val_miou"] > 0.9
    facts = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert facts["head"] == "hypercolumns"
    path = data / "test" / "images" / "1.png"
    (predicted,) = load(run.path, accelerator="cpu").predict([str(path)], workers=0)
    truth = np.asarray(Image.open(data / "test" / "masks" / "1.png"))
    assert (predicted.mask == truth).mean() > 0.95


def test_fine_tuning_starts_from_the_solved_head(options, tmp_path):
    run = tk.finetune(**options, head="linear", epochs=1, lr=1e-4, report="off", out=str(tmp_path / "run"))
    solved, tuned = run.metrics["phases"]
    assert (solved["name"], solved["epochs"], tuned["epochs"]) == ("probe", 0, 1)
    assert solved["val_miou"] > 0.7
    (row,) = read_csv(run.path / "history.csv")
    best = max(solved["val_miou"], float(row["val_miou"]))
    assert run.metrics["selection"]["kept"] in ("the solved probe", "epoch 0")
    assert (run.metrics["selection"]["kept"] == "the solved probe") == (solved["val_miou"] == best)


def test_probe_says_what_solves_a_head_of_masks(data, capsys):
    assert (
        main(["probe", "--data", str(data), "--backbone", "transferkit/mini", "--image-size", str(SIDE), "--quiet"])
        == 2
    )
    assert "segmentation answers for pixels - run finetune --phases probe, which solves its linear head" in (
        capsys.readouterr().err
    )


def test_solving_belongs_to_linear_heads(data, capsys):
    words = [
        "finetune",
        "--data",
        str(data),
        "--backbone",
        "transferkit/mini",
        "--head",
        "unet",
        "--probe",
        "solve",
        "--quiet",
    ]
    assert main(words) == 2
    assert "--probe solve fits a linear head or class means, not 'unet' - pass --probe sgd" in capsys.readouterr().err
