"""Boxes from the network to the page of an evaluation: its figures are those of what predict writes."""

import csv
import json

import pytest
from box_runs import make_box_run
from faster_coco_eval import COCO, COCOeval_faster
from object_sets import NAMES, coco, scene

from transferkit.core.errors import ConfigError
from transferkit.options.results import EvaluateConfig, PredictConfig
from transferkit.results.boxes.judged import COLUMNS
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.predict.predict import predict_files
from transferkit.results.report.report import write_report


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    coco(root, {f"s{seed:02}": scene(seed) for seed in range(14)}, name="objects.json")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_box_run(tmp_path_factory.mktemp("boxes") / "run", sure=True, names=NAMES)


@pytest.fixture(scope="module")
def out(data, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate(
        EvaluateConfig(run=str(run), data=str(data), split="all", out=str(out), against=str(run), accelerator="cpu",
                       workers=0, quiet=True)
    )  # fmt: skip
    return out


def table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_figures_are_those_of_what_predict_writes(data, run, out, tmp_path):
    values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["all"]
    file = next(iter(data.glob("*.json")))
    predict_files(
        PredictConfig(run=str(run), paths=[str(data / "images")], out=str(tmp_path / "r.json"), coco_ids=str(file),
                      accelerator="cpu", workers=0, quiet=True)
    )  # fmt: skip
    truth = COCO(str(file))
    judge = COCOeval_faster(truth, truth.loadRes(str(tmp_path / "r.json")), "bbox", print_function=lambda *_: None)
    judge.run()
    assert 0.005 < values["map50"] < 0.9
    assert judge.stats[0] == pytest.approx(values["map"], abs=1e-6)
    assert judge.stats[1] == pytest.approx(values["map50"], abs=1e-6)


def test_what_is_written(data, out):
    values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    rows = table(out / "predictions.csv")
    assert list(rows[0]) == ["split", "path", *COLUMNS] and len(rows) == 14
    assert sum(int(row["objects"]) for row in rows) == values["all"]["objects"] == 56
    mistakes = table(out / "mistakes.csv")
    assert len(mistakes) == sum(int(row["wrong"]) + int(row["missed"]) for row in rows) > 10
    assert len(mistakes) == sum(values["all"]["mistakes"].values())
    assert {row["class"] for row in table(out / "per_class.csv")} == set(NAMES)
    assert (out / "pr_curves.png").is_file() and len(table(out / "pr_curves.csv")) == 101 * 3
    assert len(json.loads((out / "data.json").read_text(encoding="utf-8"))["digest"]) == 64


def test_a_model_against_itself(out):
    values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["against"]["all"]
    assert all(float(row["difference"]) == 0 for row in table(out / "against.csv") if row["difference"])
    assert values["verdict"] and values["classes_left_out"] == []


def test_the_page_draws_them(out, tmp_path):
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<div class="frame') > 10 and 'class="over missed' in page
    assert "<h2>Mistakes</h2>" in page or "Mistakes" in page
    pair = write_report([out, out], tmp_path / "two.html").read_text(encoding="utf-8")
    assert "Average precision per class and run" in pair


def test_a_model_without_thresholds_tells_from_a_half(data, tmp_path):
    run = make_box_run(tmp_path / "run", threshold=None, names=NAMES)
    evaluate(
        EvaluateConfig(run=str(run), data=str(data), split="all", out=str(tmp_path / "out"), accelerator="cpu",
                       workers=0, quiet=True, report="off")
    )  # fmt: skip
    values = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["all"]
    assert values["chosen_here"] and values["threshold"] != 0.5
    scores = [one["score"] for row in table(tmp_path / "out" / "predictions.csv") for one in json.loads(row["boxes"])]
    assert scores and min(scores) >= 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [({"unlike": "."}, "--unlike goes by features of whole pictures, and a model of detection keeps none"),
     ({"check_classes": True}, "answers of detection lie on pixels")],
)  # fmt: skip
def test_what_means_nothing_for_boxes_is_refused(run, data, tmp_path, options, told):  # fault 154
    with pytest.raises(ConfigError, match=told):
        evaluate(EvaluateConfig(run=str(run), data=str(data), out=str(tmp_path / "e"), quiet=True, **options))
    assert list(tmp_path.iterdir()) == []
