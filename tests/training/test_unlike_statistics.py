"""The statistics that a run keeps of its training pictures: of the weights that it ends with."""

import json

import numpy as np
import pytest
import torch
from data_sets import draw
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

import transferkit as tk
from transferkit.cli.main import main
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import load_model
from transferkit.results.predict.predictor import load
from transferkit.results.report.report import write_report
from transferkit.training import unlike


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes, noise of different grain: 24 pictures to learn from, 12 to validate, 8 of no class."""
    root = tmp_path_factory.mktemp("grain")
    for split, count, start in (("train", 12, 0), ("val", 6, 1000)):
        for number, (name, size) in enumerate((("coarse", (6, 6)), ("fine", (40, 40)))):
            for picture in range(count):
                draw(root / "data" / split / name / f"{picture}.png", start + 100 * number + picture, size)
    for picture in range(8):
        draw(root / "other" / f"{picture}.png", 5000 + picture, (40, 40), mode="L")
    return root


def train(data, out, **options):
    common = {"backbone": "transferkit/mini", "weights": "bundled", "image_size": 32, "precision": "32", "seed": 0,
              "accelerator": "cpu", "workers": 0, "quiet": True, "report": "off", "epochs": 1}  # fmt: skip
    return tk.finetune(data=str(data / "data"), out=str(out), store=str(data / "store"), **{**common, **options})


@pytest.fixture(scope="module", params=["probe", "probe-finetune"])
def run(data, tmp_path_factory, request):
    return train(data, tmp_path_factory.mktemp("runs") / "run", phases=request.param)


def test_it_is_of_the_final_weights(data, run):
    module, info = load_model(run.path)
    predictor = load(run.path)
    rows = []
    for name in ("coarse", "fine"):
        shown = np.stack([predictor.decode(path) for path in sorted((data / "data" / "train" / name).iterdir())])
        with torch.inference_mode():
            rows.append(module.backbone(normalise(torch.from_numpy(shown), info.preprocessing)).double().numpy())
    train_rows = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in rows]
    centred = np.concatenate([part - part.mean(axis=0) for part in train_rows])
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    whitening = module.unlike.whitening.double().numpy()
    inverse = np.linalg.inv(covariance * 24 / 22)
    np.testing.assert_allclose(whitening @ whitening.T, inverse, rtol=0, atol=2e-3 * np.abs(inverse).max())
    facts = run.metrics["unlike_training"]
    assert facts["pictures"] == 24 and facts["held_out"] == 12 and facts["time_s"] > 0
    assert facts["shrinkage"] == pytest.approx(shrinkage, abs=2e-3)
    assert info.unlike["features"] == module.backbone.num_features and info.unlike["sample"] == 12
    held = [str(path) for name in ("coarse", "fine") for path in sorted((data / "data" / "val" / name).iterdir())]
    shares = sorted(record.unlike_training for record in predictor.predict(held))
    assert shares == pytest.approx(np.arange(12) / 12, abs=0.09)  # its own quantiles, but for rounding


def test_the_page_says_what_the_model_keeps(run):
    page = write_report([run.path], out=run.path / "page.html").read_text(encoding="utf-8")
    assert "features of 24 training pictures" in page and "the 12 val pictures is nearer" in page


@pytest.mark.parametrize(("held", "said"), [(12, "of 24 training pictures are kept"), (4, "there are 4 val pictures")])
def test_plan_says_it(data, tmp_path, capsys, held, said):
    rows = [f"data/{split}/{name}/{number}.png,{name},{split}"
            for split, count in (("train", 12), ("val", held // 2)) for name in ("coarse", "fine")
            for number in range(count)]  # fmt: skip
    manifest = tmp_path / "data.csv"
    manifest.write_text("\n".join(("path,label,split", *rows)), encoding="utf-8")
    words = ["plan", "--data", manifest, "--root", data, "--backbone", "transferkit/mini", "--weights", "bundled",
             "--image-size", "32", "--phases", "probe", "--precision", "32", "--workers", "0"]  # fmt: skip
    assert (
        main([*map(str, words), "--accelerator", "cpu", "--store", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    )
    assert said in " ".join(capsys.readouterr().out.split())
    plan = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))
    assert plan["unlike_training"]["pictures"] == (24 if held == 12 else 0)


def test_evaluate_tells_pictures_of_no_class(data, run, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", str(run.path), str(data / "data"), "--out", str(out), "--unlike", str(data / "other")]
    assert main([*command, "--report", "off", "--accelerator", "cpu", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    values = metrics["unlike_training"]["val"]
    predictor = load(run.path)
    paths = [[str(path) for path in sorted(place.rglob("*.png"))] for place in (data / "data" / "val", data / "other")]
    known, other = ([output.distance for output in predictor.outputs(part)] for part in paths)
    truth = [0] * len(known) + [1] * len(other)
    assert values["told"]["distance"]["auroc"] == pytest.approx(roc_auc_score(truth, known + other), abs=1e-9)
    sure = [[-record.probability for record in predictor.predict(part)] for part in paths]
    assert values["told"]["probability"]["auroc"] == pytest.approx(roc_auc_score(truth, [*sure[0], *sure[1]]), abs=1e-6)
    page = write_report([out]).read_text(encoding="utf-8")
    assert "Of the val pictures" in page and "8 pictures of" in page and "As a whole the folder" in page
    assert metrics["unlike"]["n"] == 8
    assert values["p"] > 0.5 and values["compared"] == [12, 12]  # they are the val pictures
    assert "AUROC" in said and "does not differ from the run's val pictures" in said


def test_a_folder_of_other_pictures_differs_as_a_whole(data, run, tmp_path):
    for number, name in enumerate(("coarse", "fine")):
        for picture in range(10):
            draw(tmp_path / "data" / name / f"{picture}.png", 9000 + 100 * number + picture, (40, 40), mode="L")
    out = tmp_path / "out"
    command = ["evaluate", str(run.path), str(tmp_path / "data"), "--out", str(out), "--report", "off", "--quiet"]
    assert main([*command, "--accelerator", "cpu", "--workers", "0"]) == 0
    values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["unlike_training"]["all"]
    assert values["p"] < 0.05 and values["mmd2"] > 0.05


def test_calibrate_keeps_it(data, run, tmp_path):
    before = json.loads((run.path / "model.json").read_text(encoding="utf-8"))["unlike_training"]
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    assert main(["calibrate", str(tmp_path), "--method", "none"]) == 0
    assert json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["unlike_training"] == before
    assert load_model(tmp_path)[1].unlike == before


def test_few_held_out_pictures_are_no_measure(data, tmp_path, monkeypatch):
    monkeypatch.setattr(unlike, "LEAST", 13)
    run = train(data, tmp_path / "run", phases="probe")
    assert load_model(run.path)[0].unlike is None and "unlike_training" not in run.metrics
    assert main(["evaluate", str(run.path), str(data / "data"), "--out", str(tmp_path / "o"), "--unlike", "x"]) == 2


def test_a_run_is_not_lost_by_it(data, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unlike, "extract_pictures", full)
    with pytest.warns(UserWarning, match="cannot say which pictures are unlike its training pictures.*No space left"):
        run = train(data, tmp_path / "run", phases="probe")
    assert load_model(run.path)[0].unlike is None and "val" in run.metrics


def test_probe_keeps_it_too(data, tmp_path):
    command = ["probe", "--data", str(data / "data"), "--backbone", "transferkit/mini", "--weights", "bundled"]
    command += ["--image-size", "32", "--store", str(data / "store"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*command, "--accelerator", "cpu"]) == 0
    module, info = load_model(tmp_path / "run")
    assert info.unlike["pictures"] == 24 and len(module.unlike.sample) == 12
    val = next((data / "data" / "val" / "fine").iterdir())
    assert 0 <= load(tmp_path / "run").predict(str(val))[0].unlike_training <= 1
