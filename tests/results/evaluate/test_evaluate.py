"""The verb `evaluate`: the run's own figures again, classes by name, nothing counted that was trained on."""

import csv
import json
import shutil
import tracemalloc
import unicodedata
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from transferkit.core.csv import csv_text, read_csv
from transferkit.core.errors import CheckpointError, ConfigError, DataError, ExportError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.data.index.targets import ClassTargets
from transferkit.models.artifact import save_model
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.models.task import task_named
from transferkit.options.fields import make_config
from transferkit.options.results import EvaluateConfig
from transferkit.results.details.classes import ClassDetails, confusions
from transferkit.results.details.plots import plot_confusion, reliability_chart
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.evaluate.summary import print_evaluation
from transferkit.results.predict.predictor import load
from transferkit.runs.labelled import labelled_pictures
from transferkit.runs.measure import prediction_rows, write_predictions
from transferkit.runs.seen import run_splits
from transferkit.show.charts import save_charts

NAMES = ("circle", "square", "stripes")


@pytest.fixture(scope="module")
def run(probed_run):
    return probed_run


@pytest.fixture(scope="module")
def whole(run, folder, tmp_path_factory):
    """The directory of an evaluation on val and test, with its plots, against the run itself."""
    out = tmp_path_factory.mktemp("whole") / "out"
    measured(run, folder, out, against=str(run))
    return out


@pytest.fixture(autouse=True)
def no_plots(whole, monkeypatch):
    """Leave the plots out, but for those of `whole`: they take most of the time."""
    monkeypatch.setattr("transferkit.results.details.classes.ClassDetails.draw", lambda *arguments: None)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def measured(run, data, out, **more):
    """Evaluate, and return `metrics.json`."""
    options = {"run": str(run), "data": str(data), "out": str(out), "accelerator": "cpu", "workers": 0, "quiet": True,
               "report": "off", **more}  # fmt: skip
    assert evaluate(make_config(EvaluateConfig, options)) == Path(out)
    return json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8"))


def write_tables(folder, values, rows):
    """Write the tables of one split, as `evaluate` does."""
    whole = [(f"{number}.png", *row) for number, row in enumerate(rows)]
    for name, table in ClassDetails().tables({"all": values}, {"all": whole}).items():
        (folder / name).write_text(csv_text(table), encoding="utf-8")


# ---- the figures ------------------------------------------------------------------------------------------------


def test_it_repeats_the_runs_own_figures_exactly(run, whole):  # fault 84
    own, found = (json.loads((path / "metrics.json").read_text(encoding="utf-8")) for path in (run, whole))
    assert 0.5 < own["val"]["acc"] < 1.0  # else equal figures would say little
    assert set(found) & {"train", "val", "test", "all"} == {"val", "test"}
    for split in ("val", "test"):
        for key in ("acc", "balanced_acc", "f1_macro", "acc_ci", "per_class", "confusion", "n"):
            assert found[split][key] == own[split][key], (split, key)
        assert found[split]["uncalibrated"] == pytest.approx(own[split]["uncalibrated"], abs=1e-5)
    # Those of val are cross-fitted in the run; those of test are what the saved model gives.
    assert found["test"]["loss"] == pytest.approx(own["test"]["loss"], abs=1e-5)
    assert found["test"]["ece"] == pytest.approx(own["test"]["ece"], abs=1e-5)
    assert found["seen_in_training"] == 0
    assert found["seen_in_val"] == 12


def test_a_val_folder_alone_gives_the_accuracy_of_training(run, folder, out):  # fault 84
    own = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]
    found = measured(run, folder / "val", out, batch_size=5)
    assert (found["all"]["acc"], found["all"]["confusion"]) == (own["acc"], own["confusion"])


def test_predictions_are_those_of_predict(run, folder, out):
    measured(run, folder / "test", out)
    rows = read_csv(out / "predictions.csv")
    assert [row["path"] for row in rows] == sorted(str(path) for path in (folder / "test").rglob("*.png"))
    told = load(run).predict([row["path"] for row in rows], workers=0)
    for row, item in zip(rows, told, strict=True):
        assert row["split"] == "all"
        assert row["label"] == Path(row["path"]).parent.name
        assert row["predicted"] == item.label
        assert float(row["probability"]) == pytest.approx(item.probability, abs=2e-6)
        assert float(row["label_probability"]) == pytest.approx(item.probs[NAMES.index(row["label"])], abs=2e-6)


def test_views_are_averaged(run, folder, out):
    found = measured(run, folder / "test", out, tta="flip")
    rows = read_csv(out / "predictions.csv")
    told = load(run).predict([row["path"] for row in rows], tta="flip", workers=0)
    assert [float(row["probability"]) for row in rows] == pytest.approx([item.probability for item in told], abs=2e-6)
    assert found["tta"] == "flip"


def test_what_is_written(run, folder, whole):
    found = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.yaml", "data.json", "metrics.json", "predictions.csv", "per_class.csv", "confusion.csv",
        "reliability.csv", "against.csv", "confusion_val.png", "confusion_test.png",
        "reliability_val.png", "reliability_test.png",
    }  # fmt: skip
    config = yaml.safe_load((whole / "config.yaml").read_text(encoding="utf-8"))
    assert (config["run"], config["data"], "out" in config) == (str(run), str(folder), False)
    data = json.loads((whole / "data.json").read_text(encoding="utf-8"))
    assert data["classes"] == list(NAMES)
    assert data["counts"] == {"val": dict.fromkeys(NAMES, 4), "test": dict.fromkeys(NAMES, 3)}
    rows = read_csv(whole / "per_class.csv")
    assert [(row["split"], row["class"], row["n"]) for row in rows[:3]] == [("val", name, "4") for name in NAMES]
    assert float(rows[0]["recall"]) == pytest.approx(found["val"]["per_class"]["circle"]["recall"], abs=1e-6)
    pairs = {(row["class"], row["predicted"]): int(row["n"]) for row in read_csv(whole / "confusion.csv")
             if row["split"] == "val"}  # fmt: skip
    matrix = [[pairs.get((true, guess), 0) for guess in NAMES] for true in NAMES]
    assert matrix == found["val"]["confusion"]
    assert sum(int(row["n"]) for row in read_csv(whole / "reliability.csv")) == 21
    for name in ("confusion_val.png", "reliability_test.png"):
        Image.open(whole / name).verify()


def test_the_summary_says_what_counts(run, whole):
    found = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))
    text = StringIO()
    print_evaluation(whole, console=Console(file=text, width=80, highlight=False))
    lines = text.getvalue().splitlines()
    assert f"val      {found['val']['acc']:.1%} accuracy (95 % interval" in text.getvalue()
    assert (
        f"balanced accuracy {found['test']['balanced_acc']:.1%}, macro F1 {found['test']['f1_macro']:.1%}, log loss"
        in text.getvalue()
    )
    worst = min(found["val"]["per_class"].items(), key=lambda item: (item[1]["recall"], item[0]))
    assert f"worst    val: {worst[0]} {worst[1]['recall']:.1%} of 4" in text.getvalue()
    assert any(line.startswith("against  val: ") and "equally many of 12 pictures" in line for line in lines)
    assert f"written  {whole}" in lines
    assert lines[-1].startswith(f"next     transferkit explain {run} ")
    assert "seen     the run was calibrated on 12 of these pictures; its own metrics.json" in text.getvalue()


# ---- classes by name --------------------------------------------------------------------------------------------


@pytest.fixture
def others(folder, tmp_path):
    """The test pictures under other classes: one is new, one is gone, one has pictures of another."""
    root = tmp_path / "others"
    shutil.copytree(folder / "test" / "stripes", root / "stripes")
    shutil.copytree(folder / "test" / "square", root / "square")
    shutil.copytree(folder / "test" / "circle", root / "aardvark")
    return root


def test_classes_are_matched_by_name(run, others, out, whole):  # fault 82
    found = measured(run, others, out)
    same = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))["test"]
    for row, name in enumerate(NAMES):
        assert found["all"]["confusion"][row] == ([0, 0, 0] if name == "circle" else same["confusion"][row])
    assert found["left_out"] == {"unknown_classes": 3, "unreadable": 0, "seen_in_training": 0}
    assert found["all"]["per_class"]["circle"]["recall"] is None
    data = json.loads((out / "data.json").read_text(encoding="utf-8"))
    assert (data["unknown_classes"], data["missing_classes"]) == ({"aardvark": 3}, ["circle"])
    text = StringIO()
    print_evaluation(out, console=Console(file=text, width=80, highlight=False))
    assert "left out 3 pictures of classes that the model lacks: aardvark (3)" in text.getvalue()
    assert "no data  for classes of the model: circle" in text.getvalue()


def test_check_classes(run, folder, others, out):  # fault 82
    with pytest.raises(ExportError, match="the model lacks 'aardvark' and the data lack 'circle' - rename") as raised:
        measured(run, others, out, check_classes=True)
    assert raised.value.exit_status == 8
    assert not out.exists()
    assert measured(run, folder, out, check_classes=True)["val"]["n"] == 12


def test_one_class_is_enough_and_none_is_not(run, folder, others, out):
    shutil.rmtree(others / "square")
    shutil.rmtree(others / "stripes")
    with pytest.raises(DataError, match=r"none of its classes \('aardvark'\) is one of the model \('circle', "):
        measured(run, others, out)
    (others / "aardvark").rename(others / "circle")
    assert measured(run, others, out)["all"]["n"] == 3


def test_accents_are_matched_however_the_disk_stores_them(folder, tmp_path):
    composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    shutil.copytree(folder / "test" / "circle", tmp_path / "data" / unicodedata.normalize("NFD", composed))
    found = labelled_pictures(str(tmp_path / "data"), ClassTargets(("bar", composed)))
    assert [picture.target for picture in found.splits["all"]] == [1, 1, 1]
    assert (found.unknown, found.missing) == ({}, ("bar",))


# ---- which pictures ---------------------------------------------------------------------------------------------


def test_pictures_it_was_trained_on_are_told_and_can_be_left_out(run, folder, out, tmp_path):
    with pytest.warns(TransferkitWarning, match="the run was trained on 24 of these 45 pictures"):
        found = measured(run, folder, out, split="all")
    assert (found["all"]["n"], found["seen_in_training"], found["seen_in_val"]) == (45, 24, 12)
    found = measured(run, folder, tmp_path / "unseen", split="all", unseen_only=True)
    assert (found["all"]["n"], found["seen_in_training"], found["left_out"]["seen_in_training"]) == (21, 0, 24)
    with pytest.raises(DataError, match="the run was trained on every picture"):
        measured(run, folder, tmp_path / "none", split="train", unseen_only=True)
    assert set(run_splits(run).values()) == {"train", "val", "test"}


def test_so_are_those_that_were_saved_again(run, folder, out, tmp_path):
    again = tmp_path / "again"
    for path in folder.rglob("*.png"):
        place = again / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(place.with_suffix(".bmp"))
    with pytest.warns(TransferkitWarning, match="the run was trained on 24 of these 45 pictures"):
        found = measured(run, again, out, split="all")
    assert (found["seen_in_training"], found["seen_in_val"]) == (24, 12)
    found = measured(run, again, tmp_path / "unseen", split="all", unseen_only=True)
    assert (found["all"]["n"], found["left_out"]["seen_in_training"]) == (21, 24)
    second = shutil.copytree(run, tmp_path / "second")
    rows = (second / "pictures.csv").read_text(encoding="utf-8").replace("test,", "train,")
    (second / "pictures.csv").write_text(rows, encoding="utf-8")
    with pytest.warns(TransferkitWarning, match="second was trained on 9 of the 9 test pictures, which favours it"):
        measured(run, again, tmp_path / "unfair", split="test", against=str(second))


def test_a_run_that_does_not_say_what_it_was_trained_on(run, folder, out, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "pictures.csv").unlink()
    found = measured(old, folder, out, split="all")
    assert (found["seen_in_training"], found["seen_in_val"]) == (None, None)
    assert run_splits(old) is None
    with pytest.raises(CheckpointError, match=r"has no pictures\.csv"):
        measured(old, folder, tmp_path / "more", unseen_only=True)


def test_layouts_without_training_pictures(run, folder, out, tmp_path):
    held = tmp_path / "held"
    shutil.copytree(folder / "val", held / "valid")
    shutil.copytree(folder / "test", held / "test")
    found = labelled_pictures(str(held), ClassTargets(NAMES))
    assert {name: len(pictures) for name, pictures in found.splits.items()} == {"val": 12, "test": 9}
    rows = [(f"test/{label}/{number:03d}.png", label, "test") for label in NAMES for number in range(3)]
    with (held / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    assert measured(run, held / "list.csv", out)["test"]["n"] == 9
    with pytest.raises(DataError, match="has no 'train' split, found pictures in 'val', 'test' - name one of them"):
        labelled_pictures(str(held), ClassTargets(NAMES), split="train")
    with pytest.raises(DataError, match="has no splits, so there is no 'val'"):
        labelled_pictures(str(folder / "val"), ClassTargets(NAMES), split="val")
    with pytest.raises(DataError, match="has no split but train, found pictures in 'train'"):
        shutil.copytree(folder / "train", tmp_path / "only" / "train")
        labelled_pictures(str(tmp_path / "only"), ClassTargets(NAMES))


def test_other_faults_of_a_folder_are_still_told(folder, tmp_path):
    shutil.copytree(folder / "test" / "circle", tmp_path / "data" / "circle")
    shutil.copytree(folder / "test" / "circle", tmp_path / "data" / "Circle")
    with pytest.raises(DataError, match="class names that differ only in case"):
        labelled_pictures(str(tmp_path / "data"), ClassTargets(NAMES))


def test_unreadable_pictures(run, folder, out, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(folder / "test", root)
    whole = (root / "circle" / "000.png").read_bytes()
    (root / "circle" / "000.png").write_bytes(whole[: len(whole) // 2])
    (root / "square" / "text.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 unreadable pictures: .*000\.png.*text\.jpg.* or pass --skip-bad"):
        measured(run, root, out)
    assert not out.exists()
    found = measured(run, root, out, skip_bad=True)
    assert (found["all"]["n"], found["left_out"]["unreadable"]) == (8, 2)
    skipped = json.loads((out / "data.json").read_text(encoding="utf-8"))["skipped"]
    assert [Path(file["path"]).name for file in skipped] == ["000.png", "text.jpg"]
    assert all(file["reason"] for file in skipped)


def test_a_file_that_is_gone_is_told_with_all_others_that_are_bad(folder, tmp_path):
    shutil.copytree(folder / "test", tmp_path / "test")
    (tmp_path / "test" / "circle" / "000.png").write_bytes(b"")
    rows = [(f"test/circle/{name}.png", "circle") for name in ("000", "001", "gone")]
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label"), *rows])
    with pytest.raises(DataError, match=r"2 unreadable pictures: .*000\.png.*gone\.png"):
        labelled_pictures(str(tmp_path / "list.csv"), ClassTargets(NAMES))
    found = labelled_pictures(str(tmp_path / "list.csv"), ClassTargets(NAMES), skip_bad=True)
    assert found.unreadable == 1  # the empty file is found when it is decoded


def test_a_file_that_changes_meanwhile_is_told(run, folder, out, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(folder / "test", root)

    def then_changed(*arguments, **options):
        found = labelled_pictures(*arguments, **options)
        shutil.copy(root / "circle" / "000.png", root / "square" / "001.png")
        return found

    monkeypatch.setattr("transferkit.results.evaluate.evaluate.labelled_pictures", then_changed)
    with pytest.raises(DataError, match=r"1 unreadable pictures: .*001\.png.*it changed while it was evaluated"):
        measured(run, root, out)


# ---- names and numbers that break tables ------------------------------------------------------------------------


def test_names_of_every_kind_come_back_from_the_tables(run, folder, out, tmp_path):  # fault 28
    root = tmp_path / "data" / "circle"
    root.mkdir(parents=True)
    names = ["with space.png", "line\nbreak.png", 'quote",.png', "=cmd.png"]
    for number, name in enumerate(names):
        shutil.copy(folder / "test" / "circle" / f"{number % 3:03d}.png", root / name)
    shutil.copy(folder / "test" / "circle" / "000.png", bytes(root) + b"/\xff.png")
    measured(run, tmp_path / "data", out)
    rows = read_csv(out / "predictions.csv")
    assert sorted(row["path"] for row in rows) == sorted(f"{root}/{name}" for name in [*names, "\\xff.png"])


def test_class_names_are_no_formulas(tmp_path):  # fault 92
    names = ("=cmd|' /C calc'!A0", "b,c", "$x$")
    probs = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    task, spec = task_named("classification"), TargetSpec(names)
    values = task.values(probs, torch.tensor([0, 1, 2]), spec)
    write_tables(tmp_path, values, [])
    rows = prediction_rows(task, "all", ["x"], probs[:1], torch.tensor([0]), spec)
    write_predictions(tmp_path / "predictions.csv", task, rows)
    assert "\nall,'=cmd|' /C calc'!A0," in (tmp_path / "per_class.csv").read_text(encoding="utf-8")
    assert [row["class"] for row in read_csv(tmp_path / "per_class.csv")] == list(names)
    assert "'=cmd" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    # Nor are they for matplotlib; a character that its font lacks is no warning.
    plot_confusion(
        values["confusion"], (names[0], "$x$ $", "\N{CJK UNIFIED IDEOGRAPH-732B}"), tmp_path / "c.png", title="t"
    )
    save_charts([reliability_chart(values["reliability"], "$t$ $", "pictures")], tmp_path / "r.png")
    Image.open(tmp_path / "c.png").verify()


def test_confusions_equal_a_count_by_hand():
    targets, predicted = ([NAMES[index] for index in row] for row in ((0, 0, 0, 1, 1, 2, 2), (1, 1, 0, 2, 1, 1, 1)))
    assert confusions(list(zip(targets, predicted, strict=True)), NAMES, 2) == [
        {"class": "circle", "predicted": "square", "n": 2},
        {"class": "stripes", "predicted": "square", "n": 2},
    ]
    assert confusions(list(zip(targets, targets, strict=True)), NAMES, 2) == []


def test_ten_thousand_classes_take_no_square_of_them(tmp_path):  # fault 25
    classes, count = 10_001, 120
    names = [f"c{number}" for number in range(classes)]
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), targets] += 3.0
    probs = logits.softmax(dim=1)
    task, spec = task_named("classification"), TargetSpec(tuple(names))
    values = task.values(probs, targets, spec)
    assert values["confusion"] is None
    predicted = probs.argmax(dim=1)
    wrong = int((predicted != targets).sum())
    assert wrong > 50
    tracemalloc.start()
    write_tables(tmp_path, values, task.output.rows(probs, targets, spec))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    rows = read_csv(tmp_path / "confusion.csv")
    assert len(rows) == 50
    assert all(row["class"] != row["predicted"] for row in rows)
    assert len(read_csv(tmp_path / "per_class.csv")) == classes


# ---- two runs ---------------------------------------------------------------------------------------------------


def test_against_a_run_of_other_classes(run, folder, out, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    backbone = create_backbone("test_resnet", weights="random", image_size=(32, 32))
    save_model(second, TransferModule(backbone, 3, "linear", class_names=("square", "stripes", "zebra")))
    found = measured(run, folder, out, split="test", against=str(second))["against"]
    assert (found["run"], found["names"]) == (str(second), ["probed", "second"])
    paired = found["test"]
    assert (paired["n"], paired["left_out"], paired["seen_in_training"]) == (6, 3, None)
    pictures = [
        (path, label) for label in ("square", "stripes") for path in sorted((folder / "test" / label).iterdir())
    ]
    right = [
        [
            item.label == label
            for item, (_, label) in zip(load(one).predict([p for p, _ in pictures], workers=0), pictures, strict=True)
        ]
        for one in (run, second)
    ]
    assert paired["acc"]["first"] == pytest.approx(np.mean(right[0]))
    assert paired["acc"]["second"] == pytest.approx(np.mean(right[1]))
    assert paired["table"]["only_second"] == sum(b and not a for a, b in zip(*right, strict=True))
    assert set(paired["per_class"]) == {"square", "stripes"}
    rows = read_csv(out / "against.csv")
    assert [(row["class"], row["n"]) for row in rows] == [("square", "3"), ("stripes", "3")]
    shutil.copy(run / "pictures.csv", second)
    (second / "pictures.csv").write_text(
        (second / "pictures.csv").read_text(encoding="utf-8").replace("test,", "train,"), encoding="utf-8"
    )
    with pytest.warns(TransferkitWarning, match="second was trained on 6 of the 6 test pictures, which favours it"):
        measured(run, folder, tmp_path / "unfair", split="test", against=str(second))
    root = tmp_path / "data"
    shutil.copytree(folder / "test" / "circle", root / "circle")
    with pytest.raises(DataError, match="its classes are others than those of the all pictures"):
        measured(run, root, tmp_path / "none", against=str(second))


def test_a_run_against_itself_is_equal(whole):
    paired = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))["against"]["val"]
    assert (paired["acc"]["difference"], paired["acc"]["ci"], paired["mcnemar_p"]) == (0.0, [0.0, 0.0], 1.0)
    assert paired["loss"]["difference"] == pytest.approx(0.0, abs=1e-6)


# ---- where it goes ----------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_by_mistake(run, folder, out, tmp_path):
    measured(run, folder / "test", out)
    before = (out / "metrics.json").read_bytes()
    with pytest.raises(CheckpointError, match="is not empty"):
        measured(run, folder / "test", out)
    assert (out / "metrics.json").read_bytes() == before
    assert measured(run, folder / "val", out, overwrite=True)["all"]["n"] == 12
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with pytest.raises(CheckpointError, match="holds a model, so --overwrite will not replace it"):
        measured(run, folder / "val", copy, overwrite=True)
    for inside in ({"out": run, "overwrite": True}, {"out": folder}, {"out": run.parent}):
        with pytest.raises(ConfigError, match="which is read, expected another directory"):
            measured(run, folder / "val", **inside)
    assert (run / "model.safetensors").is_file()


def test_a_failure_puts_the_earlier_evaluation_back(run, folder, out, tmp_path):
    measured(run, folder / "test", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad = tmp_path / "bad" / "circle"
    bad.mkdir(parents=True)
    (bad / "x.png").write_bytes(b"nothing")
    for more in ({}, {"skip_bad": True}):
        with pytest.raises(DataError, match="unreadable pictures|can be read"):
            measured(run, tmp_path / "bad", out, overwrite=True, **more)
        assert {name: (out / name).read_bytes() for name in before} == before


def test_the_default_directory_is_named_after_data_and_run(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {
        "run": str(run),
        "data": str(folder / "test"),
        "accelerator": "cpu",
        "quiet": True,
        "report": "off",
        "workers": 0,
    }
    assert evaluate(make_config(EvaluateConfig, options)) == Path("runs/test-probed-evaluate-1")


def test_no_model_is_told(folder, out, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.json"):
        measured(tmp_path, folder, out)
