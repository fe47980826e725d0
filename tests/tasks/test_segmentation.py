"""Masks through the verbs: small pictures whose mask follows from their colours."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.core.errors import ConfigError, TrainingError
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import load_model
from transferkit.models.extent import Truth
from transferkit.models.figures.masks import tally
from transferkit.options.results import EvaluateConfig
from transferkit.options.training import SelftestConfig
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.predict.predictor import load
from transferkit.runs.truths import truths_of
from transferkit.training.checks.selftest import check_resume

SIDE = 64


def draw(folder, counts, seed=0):
    """Write pictures of red rectangles on grey noise, 80 x 60 and more, each with its mask."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for at in range(count):
            height, width = int(rng.integers(60, 90)), int(rng.integers(60, 90))
            image = rng.integers(80, 120, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), dtype=np.uint8)
            top, left = int(rng.integers(0, height - 32)), int(rng.integers(0, width - 32))
            mask[top : top + 30, left : left + 32] = 1
            image[mask == 1] = (220, 30, 40)
            Image.fromarray(image).save(folder / split / "images" / f"{at:02}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{at:02}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rectangles")
    draw(folder, {"train": 24, "val": 12, "test": 5})
    (folder / "classes.txt").write_text("background\nrectangle\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    pytest.importorskip("segmentation_models_pytorch", reason="the decoders are not installed")
    return tk.finetune(
        data=str(data), backbone="transferkit/mini", weights="bundled", head="unet", image_size=SIDE, epochs=4,
        phases="finetune", lr=2e-3, batch_size=4, workers=0, accelerator="cpu", precision="32", quiet=True,
        out=str(tmp_path_factory.mktemp("runs") / "run"),
    )  # fmt: skip


def test_a_run_learns_and_writes_what_the_contract_says(run):
    metrics = run.metrics
    assert metrics["task"] == "segmentation"
    assert metrics["test"]["miou"] > 0.9  # always background: below 0.45
    assert metrics["test"]["always"]["miou"] < 0.45
    keys = {(row["key"], row.get("of")) for row in metrics["test"]["figures"]}
    assert {("miou", None), ("dice", None), ("pixel_acc", None), ("miou", "rectangle")} <= keys
    assert metrics["selection"]["monitor"] == "val_miou"
    with (run.path / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 17
    assert list(rows[0]) == ["split", "path", "mask", "pixel_acc", "miou", "loss"]
    facts = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert facts["preprocessing"]["crop_mode"] == "pad"
    assert facts["spec"]["names"] == ["background", "rectangle"]


def test_figures_are_of_whole_pictures_at_their_own_size(run, data):
    """The network by hand, one picture after the other: confusion at the size of the file."""
    module, info = load_model(run.path)
    module.eval()
    paths = sorted((data / "test" / "images").glob("*.png"))
    truths = truths_of(
        info.targets, [str(path).replace("images", "masks") for path in paths], list(map(str, paths)),
        info.preprocessing,
    )  # fmt: skip
    predictor, table = load(run.path, accelerator="cpu"), np.zeros((2, 2))
    for path in paths:
        truth = truths.of(str(path))
        assert isinstance(truth, Truth)
        image = torch.from_numpy(predictor.decode(str(path)))[None].permute(0, 3, 1, 2).float() / 255
        config = info.preprocessing
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (config.mean, config.std))
        with torch.no_grad():
            logits = module((image - mean) / std)[0]
        table += tally(logits, truth.frame, np.asarray(Image.open(truth.file))).confusion
    right, union = table.diagonal(), table.sum(axis=0) + table.sum(axis=1) - table.diagonal()
    assert run.metrics["test"]["miou"] == pytest.approx((right / union).mean(), abs=1e-3)


def test_evaluate_repeats_the_runs_figures(run, data, tmp_path):
    out = evaluate(EvaluateConfig(
        run=str(run.path), data=str(data), split="test", out=str(tmp_path / "out"), workers=0, accelerator="cpu",
        quiet=True,
    ))  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    for key in ("miou", "dice", "pixel_acc", "balanced_acc"):
        assert metrics["test"][key] == pytest.approx(run.metrics["test"][key], abs=2e-4)
    assert {"per_class.csv", "confusion.csv", "per_class.png", "report.html"} <= {path.name for path in out.iterdir()}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "its true mask" in page
    assert "data:image/jpeg" in page


def test_predictions_have_the_size_of_the_picture(run, data):
    predictor = load(run.path, accelerator="cpu")
    paths = sorted((data / "test" / "images").glob("*.png"))
    plain, flipped = (predictor.predict(list(map(str, paths)), tta=tta, workers=0) for tta in ("none", "flip"))
    for path, one, other in zip(paths, plain, flipped, strict=True):
        truth = np.asarray(Image.open(str(path).replace("images", "masks")))
        assert one.mask.shape == truth.shape
        assert (one.mask == truth).mean() > 0.9
        assert (one.mask == other.mask).mean() > 0.95
        assert sum(one.shares.values()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="expected one of none, flip"):
        predictor.predict([str(paths[0])], tta="5crop")
    with pytest.raises(ConfigError, match="--top-k is of one class per picture"):
        predictor.predict([str(paths[0])], top_k=2)


def test_options_without_a_meaning_are_refused(data):
    for options, words in (
        ({"mixup": 0.2}, "cannot be mixed"),
        ({"loss": "tversky"}, "--loss is 'tversky'"),
        ({"interpolate": True, "phases": "probe-finetune", "probe": "sgd"}, "compares whole outputs"),
        ({"head": "mlp"}, "head of one answer per picture"),
    ):
        with pytest.raises(ConfigError, match=words):
            tk.finetune(data=str(data), backbone="test_resnet", weights="random", image_size=SIDE, quiet=True,
                        **{"head": "linear", "phases": "finetune", **options})  # fmt: skip


def test_a_few_pictures_are_learnt_by_heart(data, capsys):
    with pytest.raises(TrainingError, match=r"guessing costs 0\.69"):
        tk.finetune(data=str(data), backbone="test_resnet", weights="random", head="linear", image_size=SIDE, lr=1e-4,
                    epochs=1, phases="finetune", batch_size=4, overfit_batches=1, workers=0, accelerator="cpu",
                    quiet=True)  # fmt: skip


def test_the_plan_says_that_nothing_of_the_pictures_is_kept(data, tmp_path):
    run = tk.finetune(data=str(data), backbone="test_resnet", weights="random", head="linear", image_size=SIDE,
                      phases="finetune", epochs=1, dry_run=True, workers=0, accelerator="cpu", quiet=True,
                      out=str(tmp_path / "run"))  # fmt: skip
    assert run.metrics["unlike_training"]["kept"].endswith("takes maps, not features")


def test_features_are_of_pictures_and_say_so(data):
    with pytest.raises(ConfigError, match=r"features are a row per picture.*--phases probe"):
        tk.extract_features(str(data), backbone="test_resnet", weights="random", image_size=SIDE)


@pytest.mark.slow
def test_killed_runs_of_masks_resume_to_the_last_bit(data):
    kills = check_resume(SelftestConfig(
        resume=True, data=str(data), backbone="test_resnet", weights="random", image_size=32, kills=1, quiet=True,
    ))  # fmt: skip
    assert len(kills) == 1


@pytest.mark.slow
def test_two_processes_measure_all_pictures(data, tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="the decoders are not installed")
    run = tmp_path / "run"
    words = ["--data", data, "--backbone", "test_resnet", "--weights", "random", "--head", "unet", "--image-size", SIDE,
             "--lr", "1e-3", "--epochs", 1, "--phases", "finetune", "--batch-size", 4, "--devices", 2, "--workers", 0,
             "--accelerator", "cpu", "--precision", "32", "--quiet", "--out", run]  # fmt: skip
    subprocess.run([sys.executable, "-m", "transferkit", "finetune", *map(str, words)], check=True, timeout=300)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]
    measured = run_metrics_by_one(run, data)
    for key in ("miou", "pixel_acc", "dice"):
        assert measured[key] == pytest.approx(metrics[key], abs=2e-4)
    assert metrics["n"] == 12
    with (run / "history.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    # On the canvas, where an epoch is measured, as one process measures the same weights.
    module, _ = load_model(run)
    images = tk.ImageData(str(data), SIDE, batch_size=4, data_config=module.data_config, reader=module.task.targets)
    metric = module.task.objective.metrics(["miou"], 2)["miou"]
    module.eval()
    with torch.no_grad():
        for batch, targets in images.evaluation_loader("val"):
            metric.update(module(normalise(batch, module.data_config)), targets)
    assert float(row["val_miou"]) == pytest.approx(float(metric.compute()), abs=1e-4)


def run_metrics_by_one(run, data):
    out = evaluate(EvaluateConfig(run=str(run), data=str(data), split="val", out=str(run.parent / "out"), workers=0,
                                  accelerator="cpu", quiet=True, report="off"))  # fmt: skip
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))["val"]
