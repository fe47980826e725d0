"""`evaluate --corruptions` beside pictures that were spoilt and asked about one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
from mask_runs import make_mask_run, picture
from PIL import Image

from transferkit.core.csv import read_csv
from transferkit.core.errors import ConfigError
from transferkit.core.files import sha256_of_file
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import sample_seed
from transferkit.data.images.corruption import CORRUPTIONS, STRENGTHS, corrupt
from transferkit.options.fields import make_config
from transferkit.options.results import EvaluateConfig
from transferkit.results.evaluate import corruptions
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.predict.predictor import load

WAYS = [(kind, strength) for kind in CORRUPTIONS for strength in STRENGTHS]


def measured(run, data, out, **more):
    options = {"run": str(run), "data": str(data), "out": str(out), "accelerator": "cpu", "workers": 0, "quiet": True,
               "report": "off", "corruptions": True, **more}  # fmt: skip
    evaluate(make_config(EvaluateConfig, options))
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_every_way_is_measured_on_the_same_pictures(probed_run, folder, tmp_path):
    values = measured(probed_run, folder / "val", tmp_path / "out", seed=3)["all"]
    spoilt, predictor = values["corruptions"], load(probed_run)
    transform = eval_transform(predictor.info.preprocessing)
    right = np.zeros(1 + len(WAYS))
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    for row in rows:
        pixels = transform(np.asarray(Image.open(row["path"]).convert("RGB")))
        digest = sha256_of_file(Path(row["path"]))
        views = [pixels, *(corrupt(pixels, *way, sample_seed(3, at, digest)) for at, way in enumerate(WAYS, 1))]
        logits = predictor.logits(np.stack(views))
        right += [predictor.class_names[best] == row["label"] for best in logits.argmax(axis=1)]
    accuracies = right / len(rows)
    assert spoilt["pictures"] == len(rows)
    assert spoilt["clean"] == values["acc"] == pytest.approx(accuracies[0])
    assert [value for row in spoilt["values"].values() for value in row] == pytest.approx(accuracies[1:].tolist())
    assert spoilt["mean"] == pytest.approx(accuracies[1:].mean())
    assert spoilt["worst"]["value"] == pytest.approx(accuracies[1:].min())
    assert len(set(accuracies)) > 2  # else this would say little
    table = read_csv(tmp_path / "out" / "corruptions.csv")
    assert [float(row["acc"]) for row in table] == pytest.approx(accuracies.tolist())
    assert [float(table[0]["low"]), float(table[0]["high"])] == pytest.approx(values["acc_ci"])
    assert all(float(row["low"]) <= float(row["acc"]) <= float(row["high"]) for row in table if row["low"])
    assert [(row["corruption"], int(row["strength"])) for row in table] == [("none", 0), *WAYS]


def test_of_many_pictures_some_are_taken_and_it_is_said(probed_run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corruptions, "MOST", 5)
    metrics = measured(probed_run, folder / "val", tmp_path / "out", quiet=False, report="on")
    assert metrics["all"]["corruptions"]["pictures"] == 4  # every third of 12
    assert "on 4 pictures" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Spoilt pictures" in page
    assert page.count('<th scope="row">rotation</th>') == 1


def test_without_the_flag_nothing_is_spoilt(probed_run, folder, tmp_path):
    assert "corruptions" not in measured(probed_run, folder / "val", tmp_path / "out", corruptions=False)["all"]
    assert not (tmp_path / "out" / "corruptions.csv").exists()


@pytest.fixture
def masks(tmp_path):
    for at in range(3):
        picture(tmp_path / "data" / "images" / f"{at}.png", (50, 40), seed=at)
        mask = np.random.default_rng(at).integers(0, 3, (4, 5)).astype(np.uint8)
        path = tmp_path / "data" / "masks" / f"{at}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).resize((50, 40), Image.Resampling.NEAREST).save(path)
    (tmp_path / "data" / "classes.txt").write_text('ground\nleaf\n<b>"stem"</b>\n', encoding="utf-8")
    return tmp_path / "data"


def test_masks_are_measured_on_all_but_turned_pictures(masks, tmp_path):
    spoilt = measured(make_mask_run(tmp_path / "run", facts={"values": [0, 1, 2]}), masks, tmp_path / "out")["all"][
        "corruptions"
    ]
    assert list(spoilt["values"]) == [kind for kind in CORRUPTIONS if kind != "rotation"]
    assert spoilt["figure"]["key"] == "miou"
    assert len({value for row in spoilt["values"].values() for value in row}) > 3


def test_a_model_of_windows_is_refused(masks, tmp_path):
    run = make_mask_run(tmp_path / "run", crop_mode="tile")
    with pytest.raises(ConfigError, match="--corruptions spoils pictures as the model is shown them"):
        measured(run, masks, tmp_path / "out")
    assert not (tmp_path / "out").exists()
