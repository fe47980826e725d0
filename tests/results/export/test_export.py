import dataclasses
import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from export_runs import CLASSES, draw_pictures, make_run
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from transferkit.core.errors import CheckpointError, ConfigError, ExportError
from transferkit.data.index.targets import ClassTargets
from transferkit.features.probe.classifier_file import CLASSIFIER, keep_classifier, pack_classifier, read_classifier
from transferkit.features.sklearn.extractor import FeatureExtractor
from transferkit.models.artifact import load_model, save_info, save_model
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.module import TransferModule
from transferkit.options.features import ProbeConfig
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import CALIBRATING, export_pictures
from transferkit.results.export.export import FORMATS, export
from transferkit.results.export.format import which_weights
from transferkit.results.export.skops import linear_pipeline, named_pipeline
from transferkit.results.predict.predictor import load
from transferkit.training.probe_run import run_probe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("export") / "run", calibration=Calibration("temperature", 0.8))


@pytest.fixture(scope="module")
def images():
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def config(run, **options):
    return ExportConfig(run=str(run), quiet=True, **options)


# ---- weights for timm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "size", "extra"),
    [
        ("test_resnet", 32, {}),
        ("timm/test_efficientnet", 32, {}),
        ("test_vit", 64, {"img_size": (64, 64)}),
        # A 1x1 convolution classifies; features that are wider than the map.
        ("resnetv2_50", 32, {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}),
        pytest.param("mobilenetv3_small_050", 32, {}, marks=pytest.mark.slow),
    ],
)
def test_plain_timm_takes_the_weights_strictly_and_gives_the_same_logits(backbone, size, extra, tmp_path):
    arguments = {key: value for key, value in extra.items() if key != "img_size"}
    run = make_run(tmp_path / "run", backbone=backbone, image_size=size, backbone_args=arguments)
    out = export(config(run, format="safetensors", pictures=4))
    network = timm.create_model(backbone.removeprefix("timm/"), num_classes=3, **extra).eval()
    network.load_state_dict(load_file(out), strict=True)
    module, _ = load_model(run)
    pixels = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(network(pixels), module(pixels), atol=1e-4, rtol=1e-4)
    with safe_open(out, "pt") as opened:
        facts = opened.metadata()
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["preprocessing"])["image_size"] == [size] * 2
    made = json.loads(facts["create_model"])
    assert timm.create_model(**made).state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mlp"}, "the head is 'mlp' - use --format onnx or torch"),
        ({"backbone": "torchvision/squeezenet1_1"}, "torchvision/squeezenet1_1 is not a timm network"),
    ],
)
def test_other_heads_and_backbones_are_refused_for_timm(options, message, tmp_path):
    run = make_run(tmp_path / "run", **{"image_size": 64, **options})
    with pytest.raises(ExportError, match=message) as caught:
        export(config(run, format="safetensors"))
    assert caught.value.exit_status == 8 and not (run / "run.safetensors").exists()


# ---- torch.export ---------------------------------------------------------------------------------------------------


def test_the_program_takes_batches_of_any_size_and_carries_the_facts(run, images, tmp_path):
    out = export(config(run, format="torch", out=str(tmp_path / "model.pt2")))
    files = {"transferkit.json": ""}
    program = torch.export.load(out, extra_files=files).module()
    module, info = load_model(run)
    for size in (1, 2, 7):
        with torch.inference_mode():
            probabilities, logits = program(images[:size])
            expected = module(images[:size])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(probabilities, (expected / 0.8).softmax(dim=1), atol=1e-5, rtol=0)
    facts = json.loads(files["transferkit.json"])
    assert json.loads(facts["classes"]) == list(CLASSES) and facts["sha256"] == info.sha256
    with zipfile.ZipFile(out) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path(torch.__file__).parents[1]).encode() not in content and [*tmp_path.iterdir()] == [out]


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_an_existing_file_stays_without_overwrite(run, tmp_path):
    out, example = tmp_path / "a.safetensors", tmp_path / "a_example.py"
    out.write_bytes(b"an older one")
    with pytest.raises(ExportError, match="exists already - replace it by --overwrite"):
        export(config(run, format="safetensors", out=str(out)))
    assert out.read_bytes() == b"an older one"
    export(config(run, format="safetensors", out=str(out), overwrite=True))
    assert load_file(out)
    example.write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match="a_example.py: exists already"):
        export(config(run, out=str(tmp_path / "a.onnx")))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"out": "run/model.safetensors"}, ExportError, "is a file of the run itself"),
        ({"out": "run/model.json"}, ExportError, "is a file of the run itself"),
        ({"out": "run/../run/classifier.skops"}, ExportError, "is a file of the run itself"),
        ({"out": "missing/a.onnx"}, ExportError, "is no directory"),
        ({"out": "run"}, ExportError, "is a directory"),
        ({"out": "a.pt2", "format": "torch", "precision": "fp16"}, ConfigError, "are for --format onnx"),
    ],
)
def test_what_cannot_be_written_to_is_refused_first(options, kind, message, run):
    before = (run / "model.safetensors").read_bytes()
    words = {"format": "safetensors", **options, "out": str(run.parent / options["out"])}
    with pytest.raises(kind, match=message):
        export(config(run, overwrite=True, **words))
    assert (run / "model.safetensors").read_bytes() == before


def test_damaged_models_and_runs_without_one(run, tmp_path):  # fault 87
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.json").write_bytes((run / "model.json").read_bytes())
    (copy / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="does not match the sha256"):
        export(config(copy, format="safetensors"))
    with pytest.raises(CheckpointError, match="missing - expected the directory of a finished run"):
        export(config(tmp_path, format="safetensors"))
    (tmp_path / CLASSIFIER).write_bytes(b"")
    with pytest.raises(ExportError, match="holds a classifier of features and no network - use --format skops"):
        export(config(tmp_path, format="torch"))


def test_a_head_of_the_users_own_has_to_be_passed(run, images, tmp_path, monkeypatch):
    class Own(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, 3)

        def forward(self, features):
            return self.layer(features).tanh()

    module, _ = load_model(run)
    torch.manual_seed(0)
    width = module.backbone.num_features
    own = TransferModule(module.backbone, 3, Own(width), class_names=CLASSES).eval()

    def both(pixels):
        with torch.inference_mode():
            logits = own(torch.from_numpy(pixels))
        return logits.softmax(dim=1).numpy(), logits.numpy()

    copy = tmp_path / "run"
    copy.mkdir()
    save_model(copy, own)
    (copy / "pictures.csv").write_bytes((run / "pictures.csv").read_bytes())
    with pytest.raises(ExportError, match="its head is a module of your own"):
        export(config(copy, format="torch"))
    written = []

    def write(subject, path):
        written.append(subject.module)
        path.write_bytes(b"1")

    untraced = dataclasses.replace(FORMATS["torch"], write=write, load=lambda subject, path: both)
    monkeypatch.setitem(FORMATS, "torch", untraced)
    out = export(config(copy, format="torch"), head=Own(width))
    with torch.inference_mode():
        assert torch.allclose(written[0](images), own(images), atol=1e-6) and out.read_bytes() == b"1"


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_are_the_runs_validation_pictures_that_are_still_the_same(tmp_path):
    run = make_run(tmp_path / "run")
    folder = tmp_path / "run-pictures"
    paths = sorted(map(str, (folder / "val/cat").glob("*.jpg")))
    chosen = export_pictures(run, ClassTargets(CLASSES), data=None, most=200)
    assert list(chosen.compared) == paths and chosen.origin == "validation pictures of the run"
    assert {Path(path).parts[-3] for path in chosen.calibrating} == {"train"} and len(chosen.calibrating) == 12
    assert list(export_pictures(run, ClassTargets(CLASSES), data=None, most=5).compared) == paths[::4]
    Path(paths[0]).write_bytes(Path(paths[1]).read_bytes())
    Path(paths[2]).unlink()
    assert list(export_pictures(run, ClassTargets(CLASSES), data=None, most=200).compared) == [paths[1], *paths[3:]]


def test_without_pictures_the_flag_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    for path in (tmp_path / "run-pictures/val/cat").glob("*.jpg"):
        path.unlink()
    with pytest.raises(
        ExportError, match="lists 20 validation pictures, none of which is there unchanged - pass --data"
    ):
        export(config(run, format="safetensors"))
    (run / "pictures.csv").unlink()
    with pytest.raises(ExportError, match="but the run lists none - pass --data with labelled pictures"):
        export(config(run, format="safetensors"))
    new = draw_pictures(tmp_path / "data/dog", 3)
    rows = f"val,{new[0]},dog,dog,0.9,0.9\ntest,{new[1]},dog,dog,0.9,0.9\n"
    (run / "predictions.csv").write_text(
        f"split,path,label,predicted,probability,label_probability\n{rows}", encoding="utf-8"
    )
    assert export_pictures(run, ClassTargets(CLASSES), data=None, most=9).compared == (str(new[0]),)
    chosen = export_pictures(run, ClassTargets(CLASSES), data=str(tmp_path / "data"), most=2)
    assert list(chosen.compared) == list(map(str, new[:2])) and chosen.calibrating == (str(new[2]),)
    export(config(run, format="safetensors", data=str(tmp_path / "data")))
    assert CALIBRATING == 128


# ---- which weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "options", "text"),
    [
        ({"selection": {"epoch": 1, "monitor": "val_acc"}}, {}, "weights at epoch 2, chosen by val_acc"),
        (
            {"selection": {"epoch": 0, "monitor": "val_loss"}, "interpolation": {"alpha": 0.6}, "recalibrated_bn": 9},
            {"ema": 0.999},
            "moving average (EMA 0.999) of the weights at epoch 1, chosen by val_loss; mixed with those before "
            "training (alpha 0.6); batch norm measured anew",
        ),
        ({"selection": {"epoch": None, "monitor": None}}, {}, "pretrained backbone as it was, head solved"),
        ({"selection": {"epoch": None, "monitor": "val_acc", "kept": "the probe"}}, {}, "the probe, chosen by val_acc"),
        ({"probe": {"classifier": "logistic"}}, {}, "pretrained backbone as it was, head by the logistic probe"),
        ({}, {}, "those of model.safetensors; how they were chosen is not recorded"),
    ],
)
def test_which_weights_went_out(metrics, options, text, tmp_path):  # fault 86
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(json.dumps(options), encoding="utf-8")
    assert which_weights(tmp_path) == text


# ---- scikit-learn ---------------------------------------------------------------------------------------------------

skops = pytest.importorskip("skops.io", reason="the sklearn extra is not installed")

PROBE = {"probe": {"classifier": "logistic", "exported": "yes"}}
EXTRACTOR = {"backbone": "test_resnet", "weights": "backbone.pth", "image_size": 32, "layer": "pooled", "pool": None}


VECTOR = Calibration("vector", scale=(1.0, 2.0, 0.5), bias=(0.1, 0.0, -0.3))


@pytest.mark.parametrize("calibration", [Calibration(), Calibration("temperature", 1.9), VECTOR])
def test_a_linear_probe_becomes_a_scikit_learn_classifier(calibration, run, tmp_path):
    out = tmp_path / "probe.skops"
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("model.safetensors", "pictures.csv"):
        (copy / name).write_bytes((run / name).read_bytes())
    save_info(copy, dataclasses.replace(load_model(run)[1], calibration=calibration))
    (copy / "metrics.json").write_text(json.dumps(PROBE), encoding="utf-8")
    (copy / "config.yaml").write_text(json.dumps(EXTRACTOR), encoding="utf-8")
    export(config(copy, format="skops", out=str(out)))
    classifier = skops.load(out, trusted=[])
    predictor = load(copy)
    pictures = sorted((run.parent / "run-pictures/val/cat").glob("*.jpg"))
    shown, facts = np.stack([predictor.decode(path) for path in pictures]), predictor.info.preprocessing
    normalised = (shown / 255 - np.array(facts.mean)) / np.array(facts.std)
    with torch.inference_mode():
        features = predictor.module.backbone(torch.from_numpy(normalised).permute(0, 3, 1, 2).float()).numpy()
    expected = predictor.predict(pictures)
    assert classifier.predict(features).tolist() == [item.label for item in expected]
    assert np.abs(classifier.predict_proba(features) - [item.probs for item in expected]).max() <= 1e-4
    _, facts = read_classifier(out)
    assert json.loads(facts["features"]) == EXTRACTOR and json.loads(facts["classes"]) == list(CLASSES)


def test_two_classes_keep_one_row_as_scikit_learn_does(run):
    module, info = load_model(run)
    module.head.linear.weight = nn.Parameter(module.head.linear.weight[:2])
    module.head.linear.bias = nn.Parameter(module.head.linear.bias[:2])
    pipeline = linear_pipeline(module, dataclasses.replace(info, class_names=("no", "yes")))
    features = np.random.default_rng(0).normal(size=(9, module.backbone.num_features)).astype(np.float32)
    with torch.inference_mode():
        expected = (module.head(torch.from_numpy(features)) / 0.8).softmax(dim=1).numpy()
    assert pipeline[-1].coef_.shape == (1, features.shape[1])
    assert np.abs(pipeline.predict_proba(features) - expected).max() <= 1e-5
    assert pipeline.predict(features).tolist() == [("no", "yes")[at] for at in expected.argmax(axis=1)]


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """A probe whose classifier is no head, on the bundled backbone."""
    from shapes import draw_folder

    root = tmp_path_factory.mktemp("probe")
    for seed, (split, count) in enumerate((("train", 8), ("val", 4))):
        draw_folder(root / "data" / split, per_class=count, seed=seed)
    run = run_probe(
        ProbeConfig(
            data=str(root / "data"), backbone="transferkit/mini", image_size=32, store=str(root / "store"),
            classifier="sklearn.svm.SVC", classifier_args={"kernel": "linear"}, out=str(root / "run"), quiet=True,
            accelerator="cpu",
        )
    )  # fmt: skip
    assert (run / CLASSIFIER).exists()
    return run


def test_a_classifier_that_is_no_head_is_exported_by_name(probe, tmp_path, capsys):
    out = tmp_path / "svc.skops"
    export(ExportConfig(run=str(probe), format="skops", out=str(out)))
    assert "100.0% the same on 12 validation pictures of the run" in capsys.readouterr().out
    classifier, facts = read_classifier(out)
    arguments = json.loads(facts["features"])
    rows = FeatureExtractor(**{key: value for key, value in arguments.items() if value is not None}, accelerator="cpu")
    pictures = sorted((probe.parent / "data/val").glob("*/*.png"))
    labels = classifier.predict(rows.transform(list(map(str, pictures))))
    assert set(labels) <= {"circle", "square", "stripes"}
    assert np.mean([label == path.parent.name for label, path in zip(labels, pictures, strict=True)]) > 0.5


def test_a_classifier_of_other_labels_is_not_written(probe, tmp_path):
    copy = shutil.copytree(probe, tmp_path / "run")
    pipeline, facts = read_classifier(copy / CLASSIFIER)
    pipeline[-1].classes_ = pipeline[-1].classes_[::-1].copy()
    (copy / CLASSIFIER).write_bytes(pack_classifier(pipeline, facts))
    with pytest.raises(ExportError, match="pictures get another class"):
        export(config(copy, format="skops", out=str(tmp_path / "a.skops")))
    assert not (tmp_path / "a.skops").exists()


@pytest.mark.parametrize("classifier", ["sklearn.neighbors.KNeighborsClassifier", "logistic"])
def test_features_of_random_weights_cannot_be_made_again(probe, tmp_path, classifier):  # fault 181
    run = run_probe(ProbeConfig(
        data=str(probe.parent / "data"), backbone="test_resnet", weights="random", image_size=32, quiet=True,
        classifier=classifier, out=str(tmp_path / "run"), store=str(tmp_path / "store"), accelerator="cpu",
    ))  # fmt: skip
    with pytest.raises(ExportError, match="its features are those of random weights.*pretrained, bundled, a file"):
        export(config(run, format="skops", out=str(tmp_path / "a.skops")))
    assert not (tmp_path / "a.skops").exists()


def test_only_probes_have_a_classifier(run, tmp_path):
    with pytest.raises(ExportError, match="this run is one of `finetune`"):
        export(config(run, format="skops"))
    (tmp_path / "metrics.json").write_text(
        json.dumps({"probe": {"classifier": "x.Forest", "kept": "no: trees"}}), encoding="utf-8"
    )
    with pytest.raises(ExportError, match=r"its classifier was not kept \(no: trees\)"):
        export(config(tmp_path, format="skops"))
    other = make_run(tmp_path / "mlp", head="mlp", metrics=PROBE, config=EXTRACTOR)
    with pytest.raises(
        ExportError, match="writes linear heads and scikit-learn's own classifiers, but the head is 'mlp'"
    ):
        export(config(other, format="skops"))
    (other / "config.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not that of a probe"):
        export(config(other, format="skops"))


def test_names_go_into_a_classifier_only_where_it_gives_them_back():
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 2 * 2  # the middle class has no rows
    svc = make_pipeline(StandardScaler(), SVC()).fit(X, y)
    named = named_pipeline(svc, CLASSES, X)
    assert set(named.predict(X)) <= {"cat", "Übung 3"} and svc.predict(X).dtype.kind == "i"

    class Stubborn(LogisticRegression):
        def predict(self, X):
            return np.zeros(len(X), dtype=np.int64)

    stubborn = make_pipeline(Stubborn()).fit(X, y)
    assert named_pipeline(stubborn, CLASSES, X) is stubborn


def test_classifiers_that_would_have_to_be_trusted_are_not_kept(tmp_path, monkeypatch):
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    forest = make_pipeline(RandomForestClassifier(2)).fit(X, y)
    assert "sklearn.tree._tree.Tree" in keep_classifier(tmp_path, forest, CLASSES)
    assert list(tmp_path.iterdir()) == []
    svc = make_pipeline(SVC()).fit(X, y)
    assert keep_classifier(tmp_path, svc, CLASSES) == "yes"
    classifier, facts = read_classifier(tmp_path / CLASSIFIER)
    assert classifier.predict(X).tolist() == svc.predict(X).tolist() and json.loads(facts["classes"]) == list(CLASSES)
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    assert "pip install 'transferkit[sklearn]'" in keep_classifier(tmp_path, svc, CLASSES)


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_malicious_classifier_runs_no_code(tmp_path):  # fault 88
    marker = tmp_path / "marker"
    (tmp_path / "metrics.json").write_text(json.dumps(PROBE), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(json.dumps(EXTRACTOR), encoding="utf-8")
    call = {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1, "content": "system"}
    reduced = {"__class__": "Path", "__module__": "pathlib", "__loader__": "ReduceNode", "__id__": 2,
               "content": [str(marker)]}  # fmt: skip

    def archive(schema):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as opened:
            opened.writestr("schema.json", json.dumps({**schema, "protocol": 2, "_skops_version": "0.13"}))
            opened.writestr("transferkit.json", json.dumps({"classes": "[]"}))
        return stream.getvalue()

    for data in (pickle.dumps(Marker(marker)), archive(call), archive(reduced), b"PK\x03\x04", b""):
        (tmp_path / CLASSIFIER).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            export(config(tmp_path, format="skops", out=str(tmp_path / "out.skops")))
        assert caught.value.exit_status == 6 and not marker.exists() and not (tmp_path / "out.skops").exists()
    pickle.loads(pickle.dumps(Marker(marker)))
    assert marker.exists()  # it would have
