"""How unlike its training pictures a picture is: in predictions, products and exported files."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from export_runs import draw_pictures, run_example
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from torch import nn

from transferkit.cli.main import main
from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError, ConfigError
from transferkit.data.augment.normalise import normalise
from transferkit.features.engine.network import FeatureNetwork
from transferkit.models.artifact import load_model, save_model
from transferkit.models.module import TransferModule
from transferkit.models.unlike.statistics import fit_distance
from transferkit.results.predict.predictor import Predictor, load


class MapHead(nn.Module):
    takes_maps = True

    def __init__(self, channels=96, classes=3):
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, maps):
        return self.linear(maps.amax(dim=(2, 3)))


def seen(module, paths):
    """Features of pictures, by the backbone alone."""
    predictor = Predictor(module, None)
    predictor.info = type("Info", (), {"preprocessing": module.data_config})
    shown = np.stack([predictor.decode(str(path)) for path in paths])
    with torch.inference_mode():
        return module.backbone(normalise(torch.from_numpy(shown), module.data_config)).numpy()


def make_module(classes=("a", "b", "c"), head="linear", **options):
    torch.manual_seed(0)
    return TransferModule("test_resnet", len(classes), head, weights="random", image_size=32, class_names=classes,
                          **options).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixty training pictures, twenty held out, eight to ask about."""
    root = tmp_path_factory.mktemp("pictures")
    return {name: draw_pictures(root / name, count, seed)
            for seed, (name, count) in enumerate((("train", 60), ("val", 20), ("asked", 8)))}  # fmt: skip


LABELS = np.arange(60) % 3


def informed(module, pictures, labels=LABELS):
    """Give a module its training pictures."""
    module.unlike = fit_distance(seen(module, pictures["train"]), labels)
    held = torch.from_numpy(seen(module, pictures["val"]))
    module.unlike.hold_out(module.unlike(held), held)
    return module


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    directory.mkdir()
    save_model(directory, informed(make_module(), pictures))
    return directory


@pytest.fixture(scope="module")
def expected(pictures):
    """The shares, by SciPy in double precision."""
    module = make_module()
    train, val, asked = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (seen(module, pictures[name]).astype(np.float64) for name in ("train", "val", "asked"))
    )
    means = np.stack([train[label == LABELS].mean(axis=0) for label in range(3)])
    covariance = ledoit_wolf(train - means[LABELS], assume_centered=True)[0] * 60 / 57
    inverse = np.linalg.inv(covariance)
    held, found = (
        np.array([min(mahalanobis(row, mean, inverse) for mean in means) for row in rows]) for rows in (val, asked)
    )
    return [float((held < distance).mean()) for distance in found]


def predicted(capsys, run, paths, *flags):
    command = ["predict", str(run), *map(str, paths), "--quiet", "--accelerator", "cpu", "--workers", "0"]
    assert main([*command, *flags]) == 0
    return capsys.readouterr().out


def test_csv_and_json_say_it(run, pictures, expected, capsys):
    rows = list(csv.DictReader(io.StringIO(predicted(capsys, run, pictures["asked"]))))
    assert list(rows[0])[-2:] == ["unlike_training", "error"]
    assert [float(row["unlike_training"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) > 3  # it tells something
    lines = predicted(capsys, run, pictures["asked"], "--format", "jsonl").splitlines()
    assert [json.loads(line)["unlike_training"] for line in lines] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tta", ["flip", "5crop", "2"])
def test_it_is_that_of_the_evaluation_view(run, pictures, expected, capsys, tta):
    lines = predicted(capsys, run, pictures["asked"], "--format", "jsonl", "--tta", tta).splitlines()
    assert [json.loads(line)["unlike_training"] for line in lines] == pytest.approx(expected, abs=1e-4)


def test_unknown_takes_the_place_of_labels_beyond_the_rate(run, pictures, expected, tmp_path, capsys):
    plain = load(run).predict(pictures["asked"])
    rate = sorted(expected)[4] + 1e-6
    out = tmp_path / "out.csv"
    flags = ["--out", str(out), "--unknown", str(rate), "--workers", "0", "--accelerator", "cpu"]
    assert main(["predict", str(run), *map(str, pictures["asked"]), *flags]) == 0
    beyond = [share > rate for share in expected]
    assert 0 < sum(beyond) < 8
    rows = read_csv(out)
    assert [row["label"] for row in rows] == [
        "unknown" if far else record.label for far, record in zip(beyond, plain, strict=True)
    ]
    assert [row["label_2"] for row in rows] == [record.top[1][0] for record in plain]
    assert f"{sum(beyond)} unknown" in capsys.readouterr().out


def test_one_pass_gives_outputs_and_distances(run, pictures, monkeypatch):
    passes = []
    forward = FeatureNetwork.forward
    predictor = load(run)
    list(predictor.outputs(pictures["asked"], batch_size=8))
    monkeypatch.setattr(FeatureNetwork, "forward", lambda self, images: passes.append(1) or forward(self, images))
    found = list(predictor.outputs(pictures["asked"], batch_size=8, features=True))
    assert len(passes) == 1
    assert all(output.distance > 0 and output.features.shape == (96,) for output in found)
    np.testing.assert_allclose(
        np.stack([output.features for output in found]), seen(make_module(), pictures["asked"]), atol=1e-4
    )


def test_bf16_says_about_the_same(run, pictures, expected):
    records = load(run, precision="bf16").predict([str(path) for path in pictures["val"] + pictures["asked"]])
    plain = load(run).predict([str(path) for path in pictures["val"] + pictures["asked"]])
    apart = [abs(one.unlike_training - other.unlike_training) for one, other in zip(records, plain, strict=True)]
    assert np.mean(apart) < 0.05


def test_heads_on_maps_go_by_the_pooled_features(pictures, tmp_path, expected):
    module = informed(make_module(head=MapHead()), pictures)
    save_model(tmp_path, module)
    records = load(tmp_path, head=MapHead()).predict(pictures["asked"])
    assert [record.unlike_training for record in records] == pytest.approx(expected, abs=1e-4)
    with torch.inference_mode():
        features, outputs = module.features_and_outputs(torch.zeros(2, 3, 32, 32))
        assert torch.equal(outputs, module(torch.zeros(2, 3, 32, 32)))
    assert features.shape == (2, 96)


def test_numbers_and_labels_say_it_too(pictures, tmp_path, capsys):
    module = make_module(("x", "y"), task="regression", target_facts={"mean": [0.0, 0.0], "scale": [1.0, 1.0]})
    informed(module, pictures, np.zeros(60, dtype=np.int64))
    save_model(tmp_path, module)
    rows = list(csv.DictReader(io.StringIO(predicted(capsys, tmp_path, pictures["asked"]))))
    assert list(rows[0]) == ["path", "x", "y", "unlike_training", "error"]
    assert main(["predict", str(tmp_path), str(pictures["asked"][0]), "--unknown", "0.9"]) == 2
    assert "gives none" in capsys.readouterr().err
    other = tmp_path / "labels"
    other.mkdir()
    save_model(other, informed(make_module(("x", "y"), task="multilabel"), pictures, np.zeros(60, dtype=np.int64)))
    records = load(other).predict(pictures["asked"], unknown=0.001)
    assert {record.labels for record in records if record.unlike_training > 0.001} == {("unknown",)}


def test_models_without_the_statistics_work_as_before(run, pictures, tmp_path, capsys):
    save_model(tmp_path, make_module())
    header = predicted(capsys, tmp_path, pictures["asked"]).splitlines()[0]
    assert "unlike" not in header
    assert "unlike" not in predicted(capsys, tmp_path, pictures["asked"], "--format", "jsonl")
    assert "unlike_training" not in json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert load(tmp_path).predict(pictures["asked"][:1])[0].unlike_training is None
    assert main(["predict", str(tmp_path), str(pictures["asked"][0]), "--unknown", "0.95"]) == 2
    assert "does not know how far pictures are" in capsys.readouterr().err


def test_a_class_of_that_name_is_told_apart(pictures, tmp_path):
    save_model(tmp_path, informed(make_module(("a", "b", "unknown")), pictures))
    with pytest.raises(ConfigError, match="has a class 'unknown' of its own"):
        load(tmp_path).predict(pictures["asked"], unknown=0.95)
    with pytest.raises(ConfigError, match="unknown is 1.0, expected a rate"):
        load(tmp_path).predict(pictures["asked"], unknown=1.0)


def test_edited_facts_are_an_error(run, tmp_path):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    facts = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    facts["unlike_training"]["quantiles"] = "5 4"
    (tmp_path / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.json: unlike_training cannot be read"):
        load_model(tmp_path)


def test_a_new_run_starts_from_the_backbone_and_head_alone(run):
    from transferkit.models.initial import load_weights_from

    module = make_module()
    load_weights_from(run, module)
    assert module.unlike is None


@pytest.mark.parametrize(
    ("format", "flags"),
    [("onnx", ()), pytest.param("onnx", ("--preprocessing", "inside"), marks=pytest.mark.slow), ("torch", ())],
)
def test_exported_files_say_it(run, pictures, expected, tmp_path, format, flags, capsys):
    out = tmp_path / f"model.{'onnx' if format == 'onnx' else 'pt2'}"
    data = tmp_path / "data" / "a"
    data.mkdir(parents=True)
    for path in pictures["val"]:
        (data / path.name).write_bytes(path.read_bytes())
    command = ["export", str(run), "--format", format, "--out", str(out), "--data", str(data.parent), *flags]
    assert main(command) == 0
    assert "unlike_training by" in capsys.readouterr().out
    if flags or format == "torch":
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(out))
    assert [output.name for output in session.get_outputs()] == ["probabilities", "logits", "unlike_training"]
    predictor = load(run)
    shown = torch.from_numpy(np.stack([predictor.decode(str(path)) for path in pictures["asked"]]))
    images = normalise(shown, predictor.info.preprocessing).contiguous().numpy()
    (shares,) = session.run(["unlike_training"], {"images": images})
    assert shares.tolist() == pytest.approx(expected, abs=1e-4)
    rows = run_example(tmp_path / "model_example.py", pictures["asked"])
    assert {len(row) for row in rows} == {4}
    assert [float(row[3]) for row in rows] == pytest.approx(expected, abs=5e-3)
