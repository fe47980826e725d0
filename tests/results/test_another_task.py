"""The verbs of a finished run ask the model's task: a number per picture is explained, exported and served."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from export_runs import draw_pictures, make_run, run_example

from transferkit.core.csv import read_csv
from transferkit.core.errors import ExportError
from transferkit.models import task as tasks
from transferkit.models.artifact import load_model
from transferkit.models.classification import ClassHeads
from transferkit.options.results import ExplainConfig, ExportConfig
from transferkit.results.explain import page
from transferkit.results.explain.explain import explain
from transferkit.results.export.export import export
from transferkit.results.export.program import ExportNetwork
from transferkit.results.export.skops import linear_pipeline
from transferkit.results.predict.predictor import load


class Numbers(ClassHeads):
    def problems(self, width):
        return []


@dataclass(frozen=True)
class NumberOutput:
    columns: tuple[str, ...] = ("value", "predicted")
    names_one: bool = False

    def activate(self, outputs):
        return outputs * 2

    def merge(self, predictions):
        return predictions.mean(axis=0)

    def record(self, name, prediction, spec, request):
        return SimpleNamespace(path=name, error=None, abstained=False, value=float(prediction[0]))

    def unreadable(self, name, error):
        return SimpleNamespace(path=name, error=error, abstained=False, value=None)

    def header(self, spec, request):
        return ["value"]

    def cells(self, record, spec, request):
        return [record.value]

    def values(self, record):
        return {"value": record.value}

    def answer(self, record, spec):
        return spec.names[0]

    def shares(self, record, spec):
        return {}

    def explained(self, outputs, places):
        return outputs.gather(1, places[:, None])[:, 0]

    def agree(self, predictions, expected):
        return np.abs(predictions - expected).max(axis=1) < 1e-3


@pytest.fixture
def run(tmp_path, monkeypatch):
    one = tasks.task_named("classification")
    number = dataclasses.replace(one, name="number", heads=Numbers(), output=NumberOutput(), calibrator=None)
    monkeypatch.setitem(tasks._REGISTERED, "number", number)
    return make_run(tmp_path / "run", classes=("level",), task="number")


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "new", 2)


@pytest.fixture
def values(run, pictures):
    return [record.value for record in load(run).predict(pictures)]


def test_explain(run, pictures, values, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "save_figure", lambda figure, path: drawn.append(figure))
    out = explain(
        ExplainConfig(run=str(run), paths=list(map(str, pictures)), out=str(tmp_path / "out"), neighbours=0, quiet=True)
    )
    rows = read_csv(out / "explain.csv")
    assert list(rows[0]) == ["path", "value", "target", "png", "error"]
    assert [float(row["value"]) for row in rows] == pytest.approx(values)
    assert [row["target"] for row in rows] == ["level"] * 2
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles[:2] == ["level", "evidence for level"]


def test_what_an_export_computes(run):
    module, info = load_model(run)
    predictions, outputs = ExportNetwork(module, info).eval()(torch.zeros(2, 3, 32, 32))
    assert outputs.shape == (2, 1) and torch.equal(predictions, outputs * 2)


@pytest.mark.parametrize("format", [pytest.param("torch", marks=pytest.mark.slow), "safetensors"])
def test_export(run, format, tmp_path, capsys):
    out = export(ExportConfig(run=str(run), format=format, out=str(tmp_path / "model"), pictures=5))
    assert out.is_file() and "100.0% the same on 5 validation pictures" in capsys.readouterr().out


def test_a_number_is_no_scikit_learn_classifier(run):
    with pytest.raises(ExportError, match="--format skops writes classifiers, and number is none"):
        linear_pipeline(*load_model(run))


@pytest.mark.slow
def test_export_as_onnx(run, pictures, values, tmp_path):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    export(ExportConfig(run=str(run), out=str(tmp_path / "model.onnx"), pictures=5, quiet=True))
    shown = run_example(tmp_path / "model_example.py", pictures)
    assert [float(row[1]) for row in shown] == pytest.approx(values, rel=0.05, abs=0.05)


def test_serve(run, pictures, values):
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from live_server import ask, serving

    from transferkit.results.serve.answering import Answerer

    answerer = Answerer(load(run), name="run", batch_size=8, wait_s=0.001, threads=1)
    with serving(answerer) as port:
        for path, value in zip(pictures, values, strict=True):
            status, _, answer = ask(port, "/predict?explain=true", path.read_bytes())
            assert status == 200 and answer.keys() == {"value", "model", "ms", "heatmap"}
            assert answer["value"] == pytest.approx(value, abs=1e-4)
        assert ask(port, "/health")[2]["classes"] == ["level"]
        status, headers, _ = ask(port, "/")
        assert (status, headers["location"]) == (307, "/docs")  # the page to drop pictures on shows classes
        assert "TaskAnswer" in ask(port, "/docs")[2]
