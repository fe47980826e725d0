"""Objects go through every verb: from a folder with boxes to a model that finds them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import object_sets
import pytest
import torch
from detections import by_library

import transferkit as tk
from transferkit.core.errors import ConfigError, ExportError, TransferkitWarning
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.data.images.decode import decode_image
from transferkit.models.answers.detection import BoxCalibration
from transferkit.models.artifact import load_model, save_model
from transferkit.models.figures.boxes import Thresholds
from transferkit.models.module import TransferModule
from transferkit.models.task import task_named
from transferkit.options.results import EvaluateConfig, ExportConfig
from transferkit.options.training import SelftestConfig
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.export.export import export
from transferkit.results.predict.predictor import load
from transferkit.runs.truths import truths_of
from transferkit.training.checks.selftest import check_resume

SIDE = 64
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
RECIPE = Path(__file__).parents[2] / "recipes" / "own_detector.py"


@pytest.fixture(scope="module", autouse=True)
def centres():
    """The detector of the recipe, registered."""
    spec = importlib.util.spec_from_file_location("own_detector", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Centres


def scenes(count, seed):
    """Pictures of three rectangles each, whose class is their colour; they are wider than high."""
    result = {}
    for number in range(count):
        one = object_sets.scene(1000 * seed + number, height=60, width=90, objects=3)
        pixels = np.full_like(one.pixels, 128)
        for (left, top, right, bottom), kind in zip(one.boxes, one.classes, strict=True):
            pixels[top:bottom, left:right] = COLOURS[kind]
        result[f"p{seed}-{number}"] = replace_pixels(one, pixels)
    return result


def replace_pixels(one, pixels):
    return object_sets.Scene(pixels, one.boxes, one.classes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    object_sets.coco(root, scenes(32, 1), name="train.json", folder="train_images")
    object_sets.coco(root, scenes(12, 2), name="val.json", folder="val_images")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "boxes"
    return tk.finetune(
        data=str(data), backbone="test_resnet", weights="random", head="centres", image_size=SIDE, lr=1e-2,
        phases="finetune", epochs=14, batch_size=8, augment="none", layer_decay=1.0, precision="32", workers=0,
        out=str(out), quiet=True,
    )  # fmt: skip


def test_a_run_learns_and_writes_what_the_contract_says(run):
    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["task"] == "detection"
    val = metrics["val"]
    assert val["map50"] > 0.9 and val["map"] > 0.4
    assert {"map", "map50", "map75", "f1", "precision", "recall", "threshold", "per_class", "curves"} <= set(val)
    assert val["chosen_here"] is False and val["f1"] > 0.8
    figures = {(figure["key"], figure.get("of")) for figure in val["figures"]}
    assert {("map", None), ("map50", None), ("map50", "cat")} <= figures
    model = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert model["calibration"]["thresholds"]["every"] == val["threshold"]
    assert model["head"] == "centres"
    history = (run.path / "history.csv").read_text(encoding="utf-8").splitlines()
    assert {"train_loss", "val_loss", "val_map", "val_map50"} <= set(history[0].split(","))
    last = dict(zip(history[0].split(","), history[-1].split(","), strict=True))
    assert float(last["val_map50"]) == pytest.approx(val["map50"], abs=0.02)  # of the canvas, and of the picture


def test_figures_are_the_librarys_on_the_same_predictions(run, data):
    """Outputs of the network, brought to the picture by hand, and measured by faster-coco-eval alone."""
    predictor = load(run.path)
    records = object_sets.look(data).split("val")
    paths = [record.path for record in records]
    truths = truths_of(predictor.info.targets, [record.label for record in records], paths,
                       predictor.info.preprocessing)  # fmt: skip
    tallies = []
    for path, output in zip(paths, predictor.outputs(paths, workers=0), strict=True):
        tally = predictor.module.task.extent.entry(output.logits[0], truths.of(path))
        # 90 x 60 on a canvas of 64: 64 x 43, eleven rows below the edge
        rows = output.logits[0][output.logits[0][:, 4] > 0]
        by_hand = (rows[:, :4] - [0, 10, 0, 10]) * [90 / 64, 60 / 43, 90 / 64, 60 / 43]
        by_hand = by_hand.clip(0, [90, 60, 90, 60])
        by_hand = by_hand[(by_hand[:, 2:] > by_hand[:, :2]).all(axis=1)]  # what lies on the padding is nothing
        assert np.allclose(np.sort(tally.boxes, axis=0), np.sort(by_hand, axis=0), atol=1e-3)
        tallies.append(tally)
    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["val"]
    theirs = by_library(tallies, 3).stats[:3]
    assert [metrics[key] for key in ("map", "map50", "map75")] == pytest.approx(list(theirs), abs=1e-6)


def test_evaluate_repeats_the_runs_figures(run, data, tmp_path):
    out = tmp_path / "e"
    evaluate(EvaluateConfig(run=str(run.path), data=str(data), out=str(out), against=str(run.path), quiet=True))
    again = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    before = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["val"]
    for key in ("map", "map50", "map75"):
        assert again["val"][key] == pytest.approx(before[key], abs=1e-6)
    assert (out / "mistakes.csv").is_file()


def test_predictions_lie_on_the_objects(run, data):
    predictor = load(run.path)
    one = scenes(12, 2)["p2-0"]
    path = str(data / "val_images" / "p2-0.png")
    for tta in ("none", "flip"):
        (found,) = predictor.predict([path], workers=0, tta=tta)
        assert len(found.boxes) >= 2
        for box in found.boxes:
            named = [true for true, kind in zip(one.boxes, one.classes, strict=True)
                     if object_sets.NAMES[kind] == box.label]  # fmt: skip
            assert any(overlap(box.box, true) > 0.5 for true in named)
    (array,) = predictor.predict([decode_image(path)], workers=0)
    (file,) = predictor.predict([path], workers=0)
    assert [box.box for box in array.boxes] == [box.box for box in file.boxes]


def overlap(one, other):
    sides = [min(one[at + 2], other[at + 2]) - max(one[at], other[at]) for at in (0, 1)]
    both = max(0, sides[0]) * max(0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "unet"}, "It is a head of masks"),
        ({"head": "mask_rcnn"}, "not all objects of these data have one"),
        ({"mixup": 0.2}, "cannot be mixed"),
        ({"mixup": 0.2, "tile": True, "loss": "focal"}, r"(?s)--loss is.*--tile cuts.*cannot be mixed"),
        ({"label_smoothing": 0.1}, "--label-smoothing is 0.1, but detection has none"),
        ({"class_weights": "balanced"}, "detectors weigh objects by themselves"),
        ({"loss": "focal"}, "--loss is 'focal'"),
        ({"monitor": "val_acc"}, "--monitor is 'val_acc'"),
        ({"interpolate": True}, "--interpolate"),
        ({"calibrate": "temperature"}, "calibration of detection cannot be 'temperature'"),
        ({"probe": "solve"}, "has no solver for detection"),
    ],
)
def test_options_without_a_meaning_are_refused(data, options, words):  # fault 193
    with pytest.raises(ConfigError, match=words):
        tk.finetune(data=str(data), backbone="test_resnet", weights="random", image_size=SIDE, quiet=True, workers=0,
                    **options)  # fmt: skip


def test_a_head_alone_learns_on_pictures_as_they_are(data, tmp_path):
    """Answers on pixels: nothing of the frozen part stands in for pictures."""
    run = tk.finetune(
        data=str(data), backbone="test_resnet", weights="random", head="centres", image_size=SIDE, phases="probe",
        probe_epochs=2, epochs=2, augment="none", workers=0, out=str(tmp_path / "run"), quiet=True, calibrate="none",
        report="off",
    )  # fmt: skip
    assert run.metrics["task"] == "detection"


def test_a_head_that_finds_nothing_has_figures_all_the_same(data, tmp_path):
    with pytest.warns(TransferkitWarning, match="no object of the held-out pictures is found"):
        run = tk.finetune(
            data=str(data), backbone="test_resnet", weights="random", head="centres", image_size=SIDE, epochs=1,
            phases="finetune", lr=1e-6, workers=0, out=str(tmp_path / "run"), quiet=True, batch_size=16, report="off",
        )  # fmt: skip
    val = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["val"]
    assert val["map"] == 0 and val["threshold"] is None
    (found,) = load(run.path).predict([str(data / "val_images" / "p2-0.png")], workers=0)
    assert found.boxes == ()


def test_a_few_pictures_are_learnt_by_heart(data, capsys):
    tk.finetune(data=str(data), backbone="test_resnet", weights="random", head="centres", image_size=SIDE, lr=1e-2,
                overfit_batches=1, batch_size=4, epochs=80, workers=0, precision="32")  # fmt: skip
    assert "learnt 1 batch(es) by heart" in capsys.readouterr().out


def test_other_verbs_take_objects(data, tmp_path):
    """A plan of time and memory with the largest batch, and an LR found by the detector's own loss."""
    options = {"data": str(data), "backbone": "test_resnet", "weights": "random", "head": "centres",
               "image_size": SIDE, "workers": 0, "accelerator": "cpu", "precision": "32", "quiet": True}  # fmt: skip
    plan = tk.finetune(**options, epochs=1, dry_run=True, batch_size="auto", out=str(tmp_path / "plan"))
    phases = plan.metrics["phases"]
    assert [phase["name"] for phase in phases] == ["probe", "finetune"]
    assert all(phase["time_s"] > 0 and phase["memory"] > 0 for phase in phases)
    assert plan.metrics["batch_size"] >= 1
    found = tk.find_lr(
        TransferModule("test_resnet", 3, "centres", weights="random", image_size=SIDE, task="detection"),
        tk.ImageData(str(data), SIDE, batch_size=8, reader=task_named("detection").targets, workers=0), steps=30,
    )  # fmt: skip
    assert found.raw_losses[0] > 1 and len(found.lrs) <= 30


# ---- export -----------------------------------------------------------------------------------------------------


def untrained(directory, head, *, floor=0.0):
    """Write a model of a detector that was never trained, which tells boxes from a low score on."""
    directory.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TransferModule("transferkit/mini", 3, head, weights="bundled", image_size=SIDE, task="detection",
                                class_names=object_sets.NAMES, target_facts={"outlines": True})  # fmt: skip
        if head in ("retinanet", "fcos"):  # they begin by finding nothing
            logits = module.head.net.head.classification_head.cls_logits
            torch.nn.init.normal_(logits.weight, std=0.1)
            torch.nn.init.constant_(logits.bias, -1.0)
    own = DataConfig.from_dict({**module.data_config.to_dict(), "crop_mode": "pad", "crop_pct": 1.0})
    chosen = BoxCalibration(Thresholds(floor, (floor,) * 3), "val", 5)
    save_model(directory, module, head=head, calibration=chosen, preprocessing=own)


@pytest.mark.parametrize(
    "head",
    ["faster_rcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("retinanet", "fcos", "mask_rcnn"))],
)
def test_detectors_go_out_with_their_post_processing(data, tmp_path, head):
    """Read back by onnxruntime, and by the example without torch: the boxes of `predict`, at the picture's size."""
    pytest.importorskip("onnxruntime")
    untrained(tmp_path / "run", head, floor=0.3)
    out = export(ExportConfig(run=str(tmp_path / "run"), data=str(data), pictures=6, out=str(tmp_path / "m.onnx")))
    pictures = [str(data / "val_images" / f"p2-{number}.png") for number in range(2)]
    done = subprocess.run([sys.executable, str(out.with_name("m_example.py")), *pictures], check=True,
                          capture_output=True, text=True, encoding="utf-8")  # fmt: skip
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    expected = [
        (one.path, *one_box.box, one_box.label, one_box.score)
        for one in load(tmp_path / "run").predict(pictures, workers=0)
        for one_box in one.boxes
    ]
    assert abs(len(lines) - len(expected)) <= 1 and lines  # one may lie on the threshold
    rows = [(line[0], *map(float, line[1:5]), line[5], float(line[6])) for line in lines]
    boxes, others = (np.array([row[1:5] for row in side]) for side in (rows, expected))
    nearest = np.abs(boxes[:, None] - others).max(axis=2).min(axis=1)
    assert (nearest < 0.05).sum() >= len(rows) - 1


def test_what_torch_cannot_trace_is_said(data, tmp_path):  # fault 192
    untrained(tmp_path / "run", "fcos")
    with pytest.raises(ExportError, match="whose steps hang on how much it finds - use --format onnx"):
        export(ExportConfig(run=str(tmp_path / "run"), data=str(data), pictures=2, format="torch"))


@pytest.mark.slow
def test_a_detector_of_ones_own_goes_out_for_any_batch(run, data, tmp_path):
    pytest.importorskip("onnxruntime")
    out = export(ExportConfig(run=str(run.path), data=str(data), pictures=4, out=str(tmp_path / "m.onnx"), quiet=True))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out))
    assert [one.name for one in session.get_outputs()] == ["detections"]
    assert session.run(None, {"images": np.zeros((3, 3, SIDE, SIDE), dtype=np.float32)})[0].shape[0] == 3


# ---- slow -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_runs_of_boxes_resume_to_the_last_bit(data):
    kills = check_resume(SelftestConfig(
        resume=True, data=str(data), backbone="test_resnet", weights="random", image_size=32, kills=1, quiet=True,
    ))  # fmt: skip
    assert len(kills) == 1


@pytest.mark.slow
def test_two_processes_measure_all_pictures(data, tmp_path):
    run = tmp_path / "run"
    words = ["--data", data, "--backbone", "test_resnet", "--weights", "random", "--head", "fcos", "--image-size", SIDE,
             "--lr", "1e-3", "--epochs", 2, "--phases", "finetune", "--batch-size", 4, "--devices", 2, "--workers", 0,
             "--accelerator", "cpu", "--precision", "32", "--quiet", "--out", run]  # fmt: skip
    subprocess.run([sys.executable, "-m", "transferkit", "finetune", *map(str, words)], check=True, timeout=500)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]
    assert metrics["n"] == 12
    out = evaluate(EvaluateConfig(run=str(run), data=str(data), split="val", out=str(tmp_path / "out"), workers=0,
                                  accelerator="cpu", quiet=True, report="off"))  # fmt: skip
    again = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["val"]
    for key in ("map", "map50", "objects", "detections"):
        assert again[key] == pytest.approx(metrics[key], abs=1e-4)
    module, _ = load_model(run)
    images = tk.ImageData(str(data), SIDE, batch_size=4, data_config=module.data_config, reader=module.task.targets)
    metric, losses = module.task.objective.metrics(["map50"], 3)["map50"], []
    with torch.no_grad():
        for batch, targets in images.evaluation_loader("val"):
            found = module.eval()(normalise(batch, module.data_config))
            metric.update(found, targets)
            losses += module.task.objective.item_losses(found, targets).tolist()
    history = (run / "history.csv").read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(history[0].split(","), line.split(","), strict=True)) for line in history[1:]]
    best = rows[int(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["selection"]["epoch"])]
    assert float(best["val_map50"]) == pytest.approx(float(metric.compute()), abs=1e-4)
    assert float(best["val_loss"]) == pytest.approx(np.mean(losses), abs=1e-4)
