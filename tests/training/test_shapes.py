"""From training to the exported file: rectangles, whole pictures, bands, sizes of transformers."""

import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig
from transferkit.models.artifact import load_model, read_info
from transferkit.models.backbones.registry import create_backbone
from transferkit.options.results import EvaluateConfig, ExplainConfig, ExportConfig
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.explain.explain import explain
from transferkit.results.explain.pictures import enlarged, on_picture
from transferkit.results.export.export import export


def draw(root, bands=3, deep=False, count=14):
    """Wide pictures of two classes: bright at the left end, or at the right one."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in ("left", "right"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(90, 12, (30, 90, bands))
                pixels[:, : 8 if label == "left" else None][:, 0 if label == "left" else -8 :] += 110
                pixels = pixels.clip(0, 255)
                path = root / split / label / f"{number}"
                if bands == 3:
                    Image.fromarray(pixels.astype(np.uint8)).save(path.with_suffix(".png"))
                else:
                    np.save(
                        path.with_suffix(".npy"), (pixels * 16).astype(np.uint16) if deep else pixels.astype(np.uint8)
                    )
    return root


def run_of(root, tmp_path, **options):
    usual = {"backbone": "transferkit/mini", "weights": "bundled", "phases": "probe", "report": "off", "quiet": True,
             "augment": "none", "calibrate": "none", "store": tmp_path / "store", "out": tmp_path / "run"}  # fmt: skip
    return tk.finetune(data=root, **{**usual, **options})


def accuracy(run):
    return json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["test"]["acc"]


def test_what_a_crop_does_not_see(tmp_path):
    root = draw(tmp_path / "set")
    seen = {way: accuracy(run_of(root, tmp_path, image_size=48, fit=way, out=tmp_path / way))
            for way in ("crop", "squash", "pad")}  # fmt: skip
    seen["rectangle"] = accuracy(run_of(root, tmp_path, image_size="32x96", fit="crop", out=tmp_path / "rectangle"))
    assert seen["crop"] < 0.8
    assert min(seen["squash"], seen["pad"], seen["rectangle"]) > 0.9


@pytest.mark.slow
def test_a_padded_rectangle_to_the_end(tmp_path):
    root = draw(tmp_path / "set")
    run = run_of(root, tmp_path, image_size="48x80", fit="pad", phases="probe-finetune", epochs=2, train_size="40,80",
                 augment="light")  # fmt: skip
    config = read_info(run.path).preprocessing
    assert (config.image_size, config.crop_mode) == ((48, 80), "pad")
    plan = json.loads((run.path / "plan.json").read_text(encoding="utf-8"))
    assert plan["train_sizes"] == [40, 80]
    evaluate(EvaluateConfig(run=str(run.path), data=str(root), out=str(tmp_path / "again"), quiet=True))
    again = json.loads((tmp_path / "again/metrics.json").read_text(encoding="utf-8"))
    assert again["test"]["acc"] == accuracy(run)
    path = root / "test/left/0.png"
    picture = tk.load(run.path).decode(path)
    assert picture.shape == (48, 80, 3) and (picture[:10] == picture[0, 0]).all()
    shown = enlarged(str(path), config, 90)
    assert shown.shape == (30, 90, 3)
    assert on_picture(np.zeros((48, 80), np.float32), shown, config).shape == (27, 80)
    explain(ExplainConfig(run=str(run.path), paths=[str(path)], out=str(tmp_path / "why"), quiet=True))
    assert (tmp_path / "why/explain.csv").is_file()
    for preprocessing in ("outside", "inside"):
        export(ExportConfig(run=str(run.path), format="onnx", out=str(tmp_path / f"{preprocessing}.onnx"),
                            preprocessing=preprocessing, quiet=True))  # fmt: skip


def test_bands_and_their_range_to_the_end(tmp_path):
    root = draw(tmp_path / "set", bands=5, deep=True)
    run = run_of(root, tmp_path, image_size="32x96", channels=5, value_range="auto")
    info = read_info(run.path)
    values = [np.load(path) for path in sorted((root / "train").rglob("*.npy"))]
    assert info.preprocessing.decoding.value_range == (min(map(np.min, values)), max(map(np.max, values)))
    assert info.preprocessing.input_shape == (5, 32, 96)
    low, high = info.preprocessing.decoding.value_range
    levels = (np.stack(values).astype(float) - low) / (high - low)
    assert np.allclose(info.preprocessing.mean, levels.mean(axis=(0, 1, 2)), atol=2e-3)
    assert np.allclose(info.preprocessing.std, levels.std(axis=(0, 1, 2)), atol=2e-3)
    assert accuracy(run) > 0.9
    path = root / "test/right/1.npy"
    assert tk.load(run.path).predict([path])[0].label == "right"
    whole, _ = load_model(run.path)
    assert whole.backbone.adapted and whole.data_config == info.preprocessing
    explain(ExplainConfig(run=str(run.path), paths=[str(path)], out=str(tmp_path / "why"), quiet=True))
    export(ExportConfig(run=str(run.path), format="onnx", out=str(tmp_path / "model.onnx"), quiet=True))


def test_masks_and_boxes_lie_on_all_of_a_picture(pets):  # fault 238
    from transferkit.data.batches.datamodule import ImageData
    from transferkit.data.index.boxes import BoxReader

    with pytest.raises(ConfigError, match="--fit crop shows the middle of a picture"):
        ImageData(pets, reader=BoxReader(), fit="crop")
    assert ImageData(pets, reader=BoxReader(), fit="squash").data_config.crop_mode == "squash"
    assert ImageData(pets, reader=BoxReader()).data_config.crop_mode == "pad"


def test_transformers_take_the_sizes_of_training(tmp_path):
    root = draw(tmp_path / "set", count=4)
    run = run_of(root, tmp_path, backbone="test_vit", weights="random", image_size="32x96", train_size="48,96",
                 phases="finetune", epochs=2)  # fmt: skip
    assert read_info(run.path).preprocessing.image_size == (32, 96)
    with pytest.raises(ConfigError, match="--train-size 17x50"):
        run_of(root, tmp_path, backbone="test_vit", weights="random", image_size="32x96", train_size=50,
               phases="finetune", epochs=1, out=tmp_path / "odd")  # fmt: skip


def test_position_embeddings_of_rectangles_are_rows_and_columns():
    """What dinov2 #506 and dino #8 are about: a wide picture's embeddings are not those of a high one."""
    import torch

    wide = create_backbone("test_vit", weights="random", image_size=(32, 96), any_size=True).eval()
    images = torch.randn(1, 3, 32, 96)
    with torch.no_grad():
        assert wide(images).shape == wide(images.transpose(2, 3)).shape
        same = create_backbone("test_vit", weights="random", image_size=(32, 96)).eval()
        same.load_state_dict(wide.state_dict())
        assert torch.allclose(same(images), wide(images), atol=1e-5)


def test_old_models_know_nothing_of_this():
    values = DataConfig().to_dict()
    assert DataConfig.from_dict({key: value for key, value in values.items() if key != "decoding"}) == DataConfig()


def test_a_range_that_is_none(pets):  # fault 239
    with pytest.raises(DataError, match="no picture of .* is deeper than 8 bits"):
        tk.ImageData(pets, value_range="auto")
