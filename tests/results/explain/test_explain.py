"""`explain`: a page and a row per picture, whatever they are called."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from transferkit.core.csv import csv_text, read_csv
from transferkit.core.errors import CheckpointError, ConfigError, DataError, ExportError, TransferkitWarning
from transferkit.core.records import DataConfig
from transferkit.models.artifact import save_model
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.registered import RegisteredBackbone
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.options.results import ExplainConfig
from transferkit.results.explain import explain as explaining
from transferkit.results.explain import page as pages
from transferkit.results.explain.explain import explain
from transferkit.results.predict.predictor import Predictor, load

CLASSES = ("../../up", "=cmd()", "$a_b$ $", "\u732b\n", "plain")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run, untrained, whose classes have the worst names."""
    path = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    save_model(path, TransferModule(backbone, len(CLASSES), class_names=CLASSES))
    training = sorted((folder / "train").rglob("*.png"))
    rows = [
        ("train", CLASSES[at % 5], str(file), hashlib.sha256(file.read_bytes()).hexdigest())
        for at, file in enumerate(training)
    ]
    (path / "pictures.csv").write_text(csv_text([("split", "label", "path", "sha256"), *rows]), encoding="utf-8")
    return path


@pytest.fixture
def options(run, tmp_path):
    return {
        "run": str(run),
        "out": str(tmp_path / "out"),
        "store": str(tmp_path / "store"),
        "quiet": True,
        "workers": 0,
    }


@pytest.fixture
def picture(folder):
    return str(folder / "test" / "circle" / "000.png")


def everything_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_pages_and_rows_of_pictures_with_hostile_names(options, folder, tmp_path, run, capsys):  # fault 83, 90, 92
    names = ["=$x_y$.png", "a/..b.png", "b/..b.png", "new\nline \x1b[31m.png"]
    files = []
    for number, name in enumerate(names):
        files.append(tmp_path / "in" / name)
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "test" / "circle" / f"{number % 3:03d}.png", files[-1])
    bad = tmp_path / "in" / "bad.png"
    bad.write_bytes(b"words")
    paths = [str(path) for path in (*files[:2], bad, *files[2:])]
    before = everything_below(tmp_path)
    with pytest.raises(ExportError, match=r"1 of 5 pictures could not be read; their rows in .*explain\.csv say why"):
        explain(ExplainConfig(**{**options, "quiet": False}, paths=paths, neighbours=2))
    assert "4 pictures explained in" in capsys.readouterr().out
    out = tmp_path / "out"
    rows = read_csv(out / "explain.csv")
    assert [row["path"] for row in rows] == paths
    assert list(rows[0]) == [
        "path", "label", "probability", "target", "png",
        "neighbour_1", "label_1", "similarity_1", "neighbour_2", "label_2", "similarity_2", "error",
    ]  # fmt: skip
    drawn = [row["png"] for row in rows if row["png"]]
    assert drawn == ["0001-x_y.png", "0002-b.png", "0004-b.png", "0005-new_line_31m.png"]
    new = everything_below(tmp_path) - before
    assert {name for name in new if not name.startswith("store")} == {
        "out", "out/explain.csv", *(f"out/{page}" for page in drawn)
    }  # fmt: skip
    predictions = load(run).predict(paths)
    for row, prediction in zip(rows, predictions, strict=True):
        if prediction.error is not None:
            assert "words" in row["error"] and row["label"] == row["png"] == row["neighbour_1"] == ""
            continue
        assert (row["label"], row["target"], row["error"]) == (prediction.label, prediction.label, "")
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-5)
        assert row["label_1"] in CLASSES and 1.0 >= float(row["similarity_1"]) >= float(row["similarity_2"])
        page = np.asarray(Image.open(out / row["png"]).convert("L"))
        assert page.shape[0] > 600 and page.std() > 20
    text = (out / "explain.csv").read_text(encoding="utf-8")
    assert "'=cmd()" in text and ",=cmd()" not in text


def test_targets(options, picture, monkeypatch):
    drawn = []
    monkeypatch.setattr(pages, "save_figure", lambda figure, path: drawn.append(figure))
    explained = []
    monkeypatch.setattr(
        explaining, "heatmaps", lambda predictor, views, targets: explained.append(targets) or np.zeros(views.shape[:3])
    )
    out = explain(ExplainConfig(**options, paths=[picture], neighbours=0, target="$a_b$ $"))
    (row,) = read_csv(out / "explain.csv")
    assert row["target"] == "$a_b$ $" and list(row) == ["path", "label", "probability", "target", "png", "error"]
    assert explained == [["$a_b$ $"]]
    words = [text.get_text() for axis in drawn[0].axes for text in (axis.title, axis.xaxis.label, *axis.texts)]
    assert "evidence for $a_b$ $" in words and "no place speaks for it" in words
    # The target is among the bars, whatever its probability.
    assert "$a_b$ $" in words and f"{row['label']}, {float(row['probability']):.1%}" in words


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"target": "plane"}, ConfigError, r"--target 'plane' is no class of this model\. Did you mean 'plain'\?"),
        ({"run": "bare"}, CheckpointError, r"has no pictures\.csv.*--neighbours 0"),
        ({"paths": ["empty"]}, DataError, "empty"),
        ({"out": "bare"}, CheckpointError, "bare: is there already, expected a new or empty directory"),
    ],
)
def test_refusals_come_before_any_file(options, picture, run, tmp_path, monkeypatch, change, kind, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "bare", ignore=shutil.ignore_patterns("pictures.csv"))
    (tmp_path / "empty").mkdir()
    before = everything_below(tmp_path)
    with pytest.raises(kind, match=message):
        explain(ExplainConfig(**{**options, "paths": [picture], **change}))
    assert {name for name in everything_below(tmp_path) - before if not name.startswith("store")} == set()


def test_an_empty_directory_will_do(options, picture, tmp_path):
    (tmp_path / "out").mkdir()
    assert explain(ExplainConfig(**options, paths=[picture], neighbours=0)).samefile(tmp_path / "out")


def test_a_file_that_goes_meanwhile(options, picture, tmp_path, monkeypatch):
    lost = tmp_path / "lost.png"
    shutil.copy(picture, lost)
    stream = Predictor.stream

    def then_gone(self, paths, **others):
        predictions = list(stream(self, paths, **others))
        lost.unlink()
        return iter(predictions)

    monkeypatch.setattr(Predictor, "stream", then_gone)
    with pytest.raises(ExportError, match="1 of 2 pictures"):
        explain(ExplainConfig(**options, paths=[str(lost), picture], neighbours=0))
    rows = read_csv(tmp_path / "out" / "explain.csv")
    assert "No such file" in rows[0]["error"] and rows[1]["png"] == "0002-000.png"


def test_a_model_without_heat_maps(options, picture, tmp_path, monkeypatch):
    """Its pages have the rest, and it is said once."""
    torch.manual_seed(0)
    facts = BackboneFacts("vectors", DataConfig(image_size=(8, 8)))
    module = TransferModule(RegisteredBackbone(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), facts), 5)
    info = save_model(tmp_path, module)
    monkeypatch.setattr(explaining, "load", lambda run, **others: Predictor(module, info))
    monkeypatch.setattr(explaining, "AT_ONCE", 1)
    with pytest.warns(TransferkitWarning, match="pages without heat maps: no heat map: no stage of vectors") as warned:
        explain(ExplainConfig(**options, paths=[picture, picture], neighbours=0))
    assert len(warned) == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
