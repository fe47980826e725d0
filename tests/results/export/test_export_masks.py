"""Masks in other formats: probabilities and logits of every pixel, and an example that writes the mask of a picture."""

import shutil

import numpy as np
import pytest
from export_runs import run_example
from mask_runs import MASK_CLASSES, make_mask_run, picture
from PIL import Image

pytest.importorskip("onnxscript", reason="the onnx extra is not installed")

import onnxruntime

from transferkit.core.csv import csv_text
from transferkit.core.errors import ConfigError, ExportError
from transferkit.core.files import sha256_of_file
from transferkit.options.results import ExportConfig
from transferkit.results.export.export import export
from transferkit.results.predict.masks import MaskOutput
from transferkit.results.predict.predictor import load

PALETTE = [[1, 2, 3], [200, 0, 0], [0, 0, 255]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    run = make_mask_run(root / "run", palette=PALETTE)
    paths = [picture(root / "val" / f"{at}.jpg", (60 + 9 * at, 70), seed=at) for at in range(6)]
    rows = [("val", "", path, sha256_of_file(path)) for path in paths]
    (run / "pictures.csv").write_text(csv_text([("split", "label", "path", "sha256"), *rows]), encoding="utf-8")
    return run


@pytest.fixture
def photos(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 8
    return [
        picture(tmp_path / "a.png", (50, 41)),
        picture(tmp_path / "large.jpg", (1001, 613), seed=1),
        picture(tmp_path / "turned.jpg", (803, 401), seed=2, exif=turned),
        picture(tmp_path / "turned.tif", (90, 33), seed=3, exif=turned),
        picture(tmp_path / "thin.bmp", (3, 200), seed=4),
    ]


def exported(run, tmp_path, **options):
    out = tmp_path / "model.onnx"
    return export(ExportConfig(run=str(run), out=str(out), quiet=True, **options))


@pytest.mark.parametrize(
    ("preprocessing", "least"), [pytest.param("outside", 0.998, marks=pytest.mark.slow), ("inside", 0.98)]
)
def test_graph_and_example_give_the_masks_of_predict(run, photos, tmp_path, monkeypatch, preprocessing, least):
    out = exported(run, tmp_path, preprocessing=preprocessing)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["probabilities", "logits"]
    shape = (3, 3, 64, 64) if preprocessing == "outside" else (3, 55, 70, 3)
    given = np.zeros(shape, dtype=np.float32 if preprocessing == "outside" else np.uint8)
    probabilities, logits = session.run(None, {session.get_inputs()[0].name: given})
    assert probabilities.shape == logits.shape == (3, len(MASK_CLASSES), 64, 64)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    monkeypatch.chdir(tmp_path)
    rows = run_example(out.with_name("model_example.py"), photos)
    for path, row, said in zip(photos, rows, load(run).predict(photos, workers=0), strict=True):
        with Image.open(tmp_path / row[1]) as image:
            mask, colours = np.asarray(image), np.asarray(image.convert("RGB"))
        assert mask.shape == said.mask.shape, path
        assert (mask == said.mask).mean() >= least, path
        assert (colours == np.array(PALETTE)[mask]).all()
        assert [float(share) for share in row[2:]] == pytest.approx([(mask == at).mean() for at in range(3)], abs=1e-6)


@pytest.mark.slow
def test_the_example_keeps_to_the_size_of_the_file_where_it_decodes_less(run, photos, tmp_path, monkeypatch):
    """The large JPEG is decoded at an eighth, whose sides are rounded up."""
    out = exported(run, tmp_path)
    monkeypatch.chdir(tmp_path)
    ((_, name, *_),) = run_example(out.with_name("model_example.py"), [photos[1]])
    with Image.open(tmp_path / name) as image:
        assert image.size == (1001, 613)


@pytest.mark.slow
def test_the_example_of_a_model_of_windows_puts_the_masks_of_predict_together(
    run, photos, tmp_path, monkeypatch
):  # fault 191
    """The graph sees one window; the program beside it runs the same loop."""
    tiled = make_mask_run(tmp_path / "tiled", side=32, palette=PALETTE, crop_mode="tile")
    shutil.copy(run / "pictures.csv", tiled)
    out = exported(tiled, tmp_path)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": np.zeros((2, 3, 32, 32), dtype=np.float32)})[0].shape == (2, 3, 32, 32)
    monkeypatch.chdir(tmp_path)
    rows = run_example(out.with_name("model_example.py"), photos)
    for path, row, said in zip(photos, rows, load(tiled).predict(photos, workers=0), strict=True):
        with Image.open(tmp_path / row[1]) as image:
            mask = np.asarray(image)
        assert mask.shape == said.mask.shape, path
        assert (mask == said.mask).mean() > 0.9995, path  # but for ties
    with pytest.raises(ConfigError, match="this model sees windows of 32 x 32 pixels - leave it out"):
        exported(tiled, tmp_path, preprocessing="inside", overwrite=True)


@pytest.mark.parametrize(
    ("format", "told"),
    [
        ("safetensors", "writes weights for plain timm"),
        ("skops", "takes the classifier of a probe|classifiers, and segmentation is none"),
    ],
)
def test_formats_for_classifiers_refuse_in_a_sentence(run, tmp_path, format, told):
    copied = shutil.copytree(run, tmp_path / "copy")
    (copied / "metrics.json").write_text('{"task": "segmentation"}', encoding="utf-8")
    with pytest.raises(ExportError, match=told) as refused:
        export(ExportConfig(run=str(copied), format=format, out=str(tmp_path / "x"), quiet=True))
    assert "\n" not in str(refused.value) and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_program_of_torch_is_verified(run, tmp_path):
    assert export(ExportConfig(run=str(run), format="torch", out=str(tmp_path / "m.pt2"), quiet=True)).stat().st_size


def test_a_model_that_loses_a_small_class_does_not_agree():
    """Nine tenths of the pixels are the same, and the thing is gone."""
    expected = np.zeros((1, 2, 20, 20), dtype=np.float32)
    expected[:, 0] = 0.9
    expected[:, 1] = 0.1
    expected[:, :, 5:10, 5:12] = expected[:, ::-1, 5:10, 5:12].copy()
    lost = expected.copy()
    lost[:, 0], lost[:, 1] = 0.9, 0.1
    assert (lost.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    output = MaskOutput()
    assert output.agree(expected, expected, 0.0).tolist() == [True]
    assert output.agree(lost, expected, 0.1).tolist() == [False]
    shifted = np.roll(expected, 1, axis=3)  # 30 of 35 pixels of the thing stay in it
    apart = 1 - (30 / 40 + 360 / 370) / 2
    assert output.agree(shifted, expected, apart - 1e-6).tolist() == [False]
    assert output.agree(shifted, expected, apart + 1e-6).tolist() == [True]
    tied = np.full_like(expected, 0.5)
    assert output.agree(lost, tied, 0.0).tolist() == [True]
