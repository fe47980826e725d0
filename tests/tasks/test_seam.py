"""A task of a user's own, defined in this file, goes through the verbs; the package knows nothing of it."""

import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from export_runs import run_example
from PIL import Image
from torch.nn import functional
from torchmetrics import MeanAbsoluteError

import transferkit as tk
from transferkit.core.csv import read_csv
from transferkit.core.errors import ConfigError, ExportError
from transferkit.core.targets import TargetSpec
from transferkit.data.scan.columns import CLASS_COLUMN
from transferkit.models.artifact import load_model
from transferkit.models.figures.compared import Compared
from transferkit.models.figures.figure import Figure
from transferkit.models.task import Task, register_task
from transferkit.results.export.program import ExportNetwork
from transferkit.results.export.skops import linear_pipeline


# ---- the task: the brightness of a picture, as a number -----------------------------------------------------------
class Brightness:
    """Labels are numbers: reads them, and is what they mean (`TargetReader` and `Targets`)."""

    spec, columns, stratum_names = TargetSpec(("brightness",)), CLASS_COLUMN, ("pictures",)
    unusable, tiles, columns_of = {}, False, staticmethod(lambda options: CLASS_COLUMN)
    identity = framing = staticmethod(lambda it: it)

    def itself(self, *_, **__):
        return self

    of = learn = fitted = look = itself

    def nothing(self, *_):
        return []

    problems = thin = nothing

    def none(self, *_):
        return None

    mixer = annotate = none

    def find(self, label):
        return [float(label)]

    def encode(self, labels):
        return np.array([self.find(label) for label in labels], dtype=np.float32)

    def strata(self, labels):
        return np.zeros(len(list(labels)), dtype=np.int64)

    def counts(self, labels):
        return [len(list(labels))]


class OneNumber:
    problems = Brightness.nothing

    def width(self, spec):
        return 1


class SquaredError:
    running, watched, monitors = (), ("mae",), {"loss": False, "mae": False}
    losses, smoothing, monitor = ("squares",), None, "mae"

    def loss(self, options, width):
        return torch.nn.MSELoss()

    def item_losses(self, outputs, targets):
        return functional.mse_loss(outputs, targets, reduction="none").mean(dim=1)

    def running_sums(self, outputs, targets):
        return outputs.new_zeros(0)

    def metrics(self, names, width):
        return {name: MeanAbsoluteError() for name in names}


@dataclass(frozen=True)
class Value:
    path: str
    value: float | None = None
    error: str | None = None
    abstained: bool = False
    unlike_training: float | None = None


class Plain:
    columns, names_one, labels, problem, compared = ("label", "predicted"), False, False, Brightness.none, Compared()
    objects = files = page = None

    def activate(self, outputs):
        return outputs

    def rows(self, predictions, targets, spec):
        return [(f"{t:.4f}", f"{p:.4f}") for t, p in torch.cat((targets, predictions), dim=1).tolist()]

    def merge(self, predictions):
        return predictions.mean(axis=0)

    def record(self, name, prediction, spec, request):
        return Value(name, float(prediction[0]))

    def unreadable(self, name, error):
        return Value(name, error=error)

    def header(self, spec, request):
        return list(spec.names)

    def cells(self, record, spec, request):
        return [[record.value]]

    def values(self, record):
        return {"value": record.value}

    def answer(self, record, spec):
        return spec.names[0]

    def shares(self, record, spec):
        return {}

    def explained(self, outputs, places):
        return outputs[:, 0]

    def agree(self, predictions, expected, near):
        return np.abs(predictions - expected)[:, 0] < near


class Errors:
    def measure(self, predictions, targets, spec, *, plain=None, seed=0):
        return {"mae": float((predictions - targets).abs().mean()), "n": len(targets)}

    def figures(self, values):
        return [Figure("mae", "Mean error", values["mae"], None, False, "", "mean absolute error")]


BRIGHTNESS = Task("brightness", Brightness(), OneNumber(), SquaredError(), Plain(), Errors())
# ---- end of the task ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty grey pictures, and a manifest that says how bright each is."""
    root = tmp_path_factory.mktemp("brightness")
    generator = np.random.default_rng(0)
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        for number in range(60):
            level = float(generator.uniform(0.1, 0.9))
            noise = generator.normal(255 * level, 8, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / f"{number}.png")
            writer.writerow([f"{number}.png", f"{level:.4f}"])
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A model of brightness."""
    from transferkit.models.task import _REGISTERED

    register_task(BRIGHTNESS)
    out = tmp_path_factory.mktemp("runs") / "run"
    yield tk.finetune(
        data=str(data / "list.csv"), task="brightness", backbone="test_resnet", weights="random", image_size=32,
        phases="finetune", epochs=10, lr=1e-2, batch_size=8, precision="32", accelerator="cpu",
        workers=0, quiet=True, augment="none", out=str(out),
    )  # fmt: skip
    _REGISTERED.pop("brightness")


def test_the_task_is_short():
    from pathlib import Path

    lines = Path(__file__).read_text(encoding="utf-8").split("# ---- ")[1].splitlines()
    assert 40 < len(lines) < 120
    assert sum(bool(line.strip()) for line in lines) < 80


def test_finetune_learns_it(run):
    metrics = run.metrics
    assert metrics["val"]["figures"][0]["key"] == "mae"
    assert metrics["val"]["mae"] < 0.15  # always the mean of the training pictures: 0.2
    history = read_csv(run.path / "history.csv")
    assert {"train_loss", "val_loss", "val_mae"} <= set(history[0])
    best = min(range(len(history)), key=lambda epoch: float(history[epoch]["val_mae"]))
    assert metrics["selection"]["epoch"] == best
    model = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert (model["task"], model["spec"]["names"]) == ("brightness", ["brightness"])


def test_predict_tells_numbers(run, data, tmp_path, command):
    status, _, err = command("predict", str(run.path), str(data), "--out", str(tmp_path / "p.csv"), "--quiet")
    assert status == 0, err
    rows = {row["path"].rsplit("/", 1)[1]: float(row["brightness"]) for row in read_csv(tmp_path / "p.csv")}
    truth = {row["path"]: float(row["label"]) for row in read_csv(data / "list.csv")}
    assert np.corrcoef([rows[name] for name in truth], list(truth.values()))[0, 1] > 0.9
    first = tk.load(run.path).predict([data / "0.png"])[0]
    assert first.value == pytest.approx(rows["0.png"], abs=1e-4)


def test_check_says_that_it_cannot_read_the_answers(run, data, tmp_path, command):
    words = ["check", "--data", str(data / "list.csv"), "--task", "brightness", "--quick", "--out", str(tmp_path / "c")]
    status, _, err = command(*words)
    assert status == 2 and not (tmp_path / "c").exists()
    assert "check reads no answers of task 'brightness', expected one of classification, multilabel" in err
    assert "or use finetune at once" in err


def test_evaluate_and_the_page(run, data, tmp_path, command):
    out = tmp_path / "evaluation"
    words = ["evaluate", str(run.path), str(data / "list.csv"), "--out", str(out), "--unseen-only"]
    status, printed, err = command(*words)
    assert status == 0, err
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["all"]["mae"] < 0.15
    assert "mean error" in printed.lower()
    for page in (out / "report.html", run.path / "report.html"):
        assert "Mean error" in page.read_text(encoding="utf-8")


def test_explain(run, data, tmp_path, command, monkeypatch):
    figures, out = [], tmp_path / "why"
    monkeypatch.setattr("transferkit.results.explain.page.save_figure", lambda figure, path: figures.append(figure))
    words = ["explain", str(run.path), str(data / "0.png"), str(data / "1.png"), "--out", str(out), "--neighbours", "0"]
    assert command(*words)[0] == 0
    rows = read_csv(out / "explain.csv")
    assert list(rows[0]) == ["path", "brightness", "target", "png", "error"]
    predictions = tk.load(run.path).predict([data / "0.png", data / "1.png"])
    assert [float(row["brightness"]) for row in rows] == pytest.approx([one.value for one in predictions], abs=1e-4)
    assert [axis.get_title() for axis in figures[0].axes][:2] == [
        f"brightness: {rows[0]['brightness']}", "evidence for brightness",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "format",
    ["safetensors", pytest.param("torch", marks=pytest.mark.slow), pytest.param("onnx", marks=pytest.mark.slow)],
)
def test_export(run, data, format, tmp_path, command):
    out, pictures = tmp_path / "model", [data / "0.png", data / "1.png"]
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    status, printed, err = command("export", run.path, "--format", format, "--out", out, "--pictures", "5")
    assert (status, err) == (0, "")
    assert "100.0% the same on 5 validation pictures" in printed
    if format == "onnx":
        shown = [float(row[1]) for row in run_example(tmp_path / "model_example.py", pictures)]
        assert shown == pytest.approx([one.value for one in tk.load(run.path).predict(pictures)], abs=0.01)


def test_what_an_export_computes_and_what_it_cannot_be(run):
    module, info = load_model(run.path)
    predictions, outputs, unlike = ExportNetwork(module, info).eval()(torch.zeros(2, 3, 32, 32))
    assert outputs.shape == (2, 1) and torch.equal(predictions, outputs) and unlike.shape == (2,)
    with pytest.raises(ExportError, match="--format skops writes classifiers, and brightness is none"):
        linear_pipeline(module, info)


def test_serve(run, data):
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from live_server import ask, serving

    from transferkit.results.serve.answering import Answerer

    predictor = tk.load(run.path)
    with serving(Answerer(predictor, name="run", batch_size=8, wait_s=0.001, threads=1)) as port:
        status, _, answer = ask(port, "/predict?explain=true", (data / "0.png").read_bytes())
        assert status == 200 and answer.keys() == {"value", "unlike_training", "model", "ms", "heatmap"}
        assert answer["value"] == pytest.approx(predictor.predict(data / "0.png")[0].value, abs=1e-4)
        assert ask(port, "/health")[2]["classes"] == ["brightness"]
        status, headers, _ = ask(port, "/")
        assert (status, headers["location"]) == (307, "/docs")  # the page to drop pictures on shows classes
        assert "TaskAnswer" in ask(port, "/docs")[2]


def test_a_verb_that_needs_a_part_it_lacks_says_so(run, data, tmp_path, command):
    status, _, err = command("calibrate", str(run.path), str(data / "list.csv"))
    assert (status, err.count("\n")) == (2, 1)
    assert "calibrate has no calibrator for brightness" in err
    with pytest.raises(ConfigError, match="unknown task 'brightnes'. Did you mean 'brightness'?"):
        tk.finetune(data=str(data / "list.csv"), task="brightnes", out=str(tmp_path / "x"))
