"""The verb `calibrate`: what it fits on, what it writes and leaves alone, what it says."""

import dataclasses
import errno
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.cli.main import main
from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError, ConfigError, DataError, StorageError, TransferkitWarning
from transferkit.core.files import sha256_of_file
from transferkit.models.artifact import load_model, save_model
from transferkit.models.calibration.calibration import fit_calibration
from transferkit.models.module import TransferModule
from transferkit.options.results import CalibrateConfig
from transferkit.results.evaluate.calibrate import calibrate
from transferkit.results.predict.predictor import load

CLASSES = ("circle", "square", "stripes")
COUNT = 150
OVERCONFIDENT = 4.0


def picture(seed):
    generator = np.random.default_rng(seed)
    low = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that is too sure of itself, and pictures whose labels are drawn from a quarter of its logits."""
    root = tmp_path_factory.mktemp("world")
    pictures = [picture(seed) for seed in range(COUNT)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TransferModule("test_resnet", 3, weights="random", image_size=32, class_names=CLASSES)
        torch.nn.init.normal_(module.head.linear.weight)
    run = root / "run"
    run.mkdir()
    save_model(run, module, head="linear")
    logits = np.stack([output.logits[0] for output in load(run).outputs(pictures)])
    spread = 1.5 * OVERCONFIDENT / logits.std(axis=0)
    with torch.no_grad():  # logits of mean 0 and standard deviation 6
        linear = module.head.linear
        linear.bias.copy_(torch.from_numpy((linear.bias.numpy() - logits.mean(axis=0)) * spread))
        linear.weight.mul_(torch.from_numpy(spread)[:, None])
    save_model(run, module, head="linear")
    (run / "metrics.json").write_text("{}", encoding="utf-8")
    data = root / "data"
    generator = np.random.default_rng(1)
    for number, output in enumerate(load(run).outputs(pictures)):
        probs = torch.from_numpy(output.logits[0] / OVERCONFIDENT).double().softmax(dim=0).numpy()
        folder = data / CLASSES[generator.choice(3, p=probs)]
        folder.mkdir(parents=True, exist_ok=True)
        pictures[number].save(folder / f"{number:03d}.png")
    tell(run, {})
    return run, data


def tell(run, splits):
    """Write `pictures.csv`: the split of each of some files."""
    rows = [(split, path.parent.name, str(path), sha256_of_file(path)) for path, split in splits.items()]
    (run / "pictures.csv").write_text(csv_text([("split", "label", "path", "sha256"), *rows]), encoding="utf-8")


@pytest.fixture
def run(world, tmp_path):
    return shutil.copytree(world[0], tmp_path / "run")


@pytest.fixture
def data(world):
    return world[1]


def files_of(data):
    return sorted(data.glob("*/*.png"))


def options(run, data, **more):
    plain = {"run": str(run), "data": str(data), "accelerator": "cpu", "workers": 0, "quiet": True}
    return CalibrateConfig(**(plain | more))


def content(run):
    return {path.name: path.read_bytes() for path in run.iterdir()}


def changed(before, run):
    after = content(run)
    return {name for name in before | after if before.get(name) != after.get(name)}


def known(files, predictor):
    """Logits and labels of pictures."""
    logits = [output.logits[0] for output in predictor.outputs(files)]
    return torch.from_numpy(np.stack(logits)), torch.tensor([CLASSES.index(file.parent.name) for file in files])


def test_the_calibration_is_fitted_stored_and_used(run, data):
    before, plain = content(run), load(run)
    found = calibrate(options(run, data))
    assert changed(before, run) == {"model.json"}
    logits, targets = known(files_of(data), plain)
    reference, _ = fit_calibration(logits, targets, fitted_on=str(data))
    assert found.temperature == pytest.approx(reference.temperature, rel=1e-3)
    assert found.figures == pytest.approx(reference.figures, abs=1e-3)
    assert OVERCONFIDENT / 1.5 < found.temperature < OVERCONFIDENT * 1.5
    assert found.figures["ece_after"] < found.figures["ece_before"] / 2
    assert found.fitted_on == str(data)
    assert len(found.held_out.label) == COUNT
    old, new = (json.loads(text) for text in (before["model.json"], (run / "model.json").read_text(encoding="utf-8")))
    assert {key for key in old if old[key] != new[key]} == {"calibration", "temperature"}
    again = load(run)
    assert again.info.calibration == found
    assert again.probs(logits[:1].numpy()) == pytest.approx((logits[0] / found.temperature).softmax(dim=0).numpy())
    assert again.predict(files_of(data)[0], abstain=0.9)[0].classes is not None


def test_what_is_printed(run, data, capsys):
    found = calibrate(options(run, data, quiet=False))
    told = capsys.readouterr().out
    assert f"pictures {COUNT} of {data}" in told
    assert f"method   temperature {found.temperature:.3f}" in told
    assert f"ECE      {found.figures['ece_before']:.4f} before, {found.figures['ece_after']:.4f} after" in told
    assert f"NLL      {found.figures['loss_before']:.4f} before, {found.figures['loss_after']:.4f} after" in told
    rows = re.findall(r"(\d+)% │ +([\d.]+)% │ +([\d.]+) │ +([\d.]+)%", told)
    assert [row[0] for row in rows] == ["90", "95", "99"]
    measured, sizes, singles = ([float(row[column]) for row in rows] for column in (1, 2, 3))
    assert all(abs(found - asked) < 8 for found, asked in zip(measured, (90, 95, 99), strict=True))
    assert 1 < sizes[0] <= sizes[1] <= sizes[2] <= 3
    assert singles[0] >= singles[1] >= singles[2]
    assert "left out" not in told
    assert "labels" not in told


def test_pictures_of_the_training_are_left_out(run, data, capsys):
    files = files_of(data)
    tell(run, dict.fromkeys(files[:40], "train") | dict.fromkeys(files[40:60], "test") | {files[60]: "val"})
    found = calibrate(options(run, data, quiet=False))
    told = capsys.readouterr().out
    assert "left out 40 that the run was trained on, 20 of the run's test split" in told
    assert f"pictures {COUNT - 60} of" in told
    logits, targets = known(files[60:], load(run))
    assert found.temperature == pytest.approx(fit_calibration(logits, targets)[0].temperature, rel=1e-3)
    assert calibrate(options(run, data, split="all")).figures["n"] == COUNT - 40


def test_renamed_copies_of_the_training_are_left_out(run, data, tmp_path):
    files = files_of(data)
    tell(run, dict.fromkeys(files[:40], "train"))
    copy = shutil.copytree(data, tmp_path / "copy")
    for number, file in enumerate(files_of(copy)):
        file.rename(file.with_name(f"new{number}.png"))
    assert calibrate(options(run, copy)).figures["n"] == COUNT - 40


def test_val_is_taken_where_there_is_one(run, data, tmp_path):
    split = tmp_path / "split"
    for number, file in enumerate(files_of(data)):
        target = split / ("test" if number % 3 == 0 else "val") / file.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    found = calibrate(options(run, split))
    assert (found.figures["n"], found.fitted_on) == (100, f"{split} (val)")
    assert calibrate(options(run, split, split="test")).figures["n"] == 50
    assert calibrate(options(run, split, split="all")).figures["n"] == 150
    shutil.rmtree(split / "val")
    assert calibrate(options(run, split)).figures["n"] == 50


def test_vector_scaling_says_how_many_labels_change(run, data, capsys):
    found = calibrate(options(run, data, method="vector", quiet=False))
    assert re.search(r"labels   \d+ of 150 change; [\d.]+% right before, [\d.]+% after", capsys.readouterr().out)
    assert len(found.scale) == len(found.bias) == 3
    assert load(run).info.calibration == found


def test_none_takes_it_off(run, data, capsys):
    before = content(run)
    calibrate(options(run, data))
    assert changed(before, run) == {"model.json"}
    assert calibrate(options(run, "", method="none", quiet=False)).method == "none"
    assert changed(before, run) == set()
    assert "not calibrated any more" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_file(run, data):
    texts = []
    for seed in (0, 0, 1):
        calibrate(options(run, data, seed=seed))
        texts.append((run / "model.json").read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_by_the_command_line(run, data, capsys):
    arguments = ["calibrate", str(run), str(data), "--workers", "0", "--accelerator", "cpu"]
    assert main(arguments) == 0
    assert "ECE" in capsys.readouterr().out
    assert load_model(run)[1].calibration.method == "temperature"
    assert main([*arguments, "--split", "test"]) == 3
    assert "has no splits" in capsys.readouterr().err


# ---- what does not fit ------------------------------------------------------------------------------------------


def test_a_run_that_does_not_say_what_it_was_trained_on(run, data):
    (run / "pictures.csv").unlink()
    with pytest.warns(TransferkitWarning, match=r"has no pictures.csv, .* the model will be too sure of itself"):
        assert calibrate(options(run, data)).figures["n"] == COUNT


def test_unreadable_pictures_and_unknown_classes_are_left_out(run, data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "copy")
    (copy / "circle" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    (copy / "hexagon").mkdir()
    picture(1000).save(copy / "hexagon" / "six.png")
    with pytest.warns(TransferkitWarning, match=r"1 pictures cannot be read and were left out: '.*broken.png'"):
        assert calibrate(options(run, copy, quiet=False)).figures["n"] == COUNT
    assert "left out 1 of classes that the model lacks ('hexagon')" in capsys.readouterr().out


def test_a_calibration_that_does_not_help_is_stored_and_told(run, data, monkeypatch):
    def worse(*args, **more):
        calibration, probs = fit_calibration(*args, **more)
        return dataclasses.replace(calibration, figures={**calibration.figures, "loss_after": 9.0}), probs

    monkeypatch.setattr("transferkit.models.answers.classification.fit_calibration", worse)
    with pytest.warns(TransferkitWarning, match=r"does not help: the cross-fitted log loss is 9.0000, and [\d.]+ with"):
        calibrate(options(run, data))
    assert load_model(run)[1].calibration.figures["loss_after"] == 9.0


def one_class(data, tmp_path):
    shutil.copytree(data / "circle", tmp_path / "one" / "circle")
    return tmp_path / "one"


def few(data, tmp_path):
    for file in (file for name in CLASSES for file in sorted((data / name).iterdir())[:3]):
        target = tmp_path / "few" / file.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path / "few"


def foreign(data, tmp_path):
    shutil.copytree(data / "circle", tmp_path / "foreign" / "circles")
    return tmp_path / "foreign"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (few, "9 held-out pictures are too few, expected at least 10 - name other pictures; nothing was changed"),
        (one_class, "all of one class, expected at least two - name other pictures"),
        (foreign, "none of its classes .'circles'. is one of the model"),
        (lambda data, tmp_path: tmp_path / "nowhere", "nothing found at"),
    ],
)
def test_pictures_that_cannot_be_fitted_on_change_nothing(run, data, tmp_path, make, message):
    calibrate(options(run, data))
    before = content(run)
    with pytest.raises(DataError, match=message):
        calibrate(options(run, make(data, tmp_path)))
    assert changed(before, run) == set()


def test_only_training_pictures_change_nothing(run, data):
    tell(run, dict.fromkeys(files_of(data), "train"))
    before = content(run)
    with pytest.raises(DataError, match=r"no picture to fit on, 150 that the run was trained on were left out"):
        calibrate(options(run, data))
    tell(run, dict.fromkeys(files_of(data)[5:], "train"))
    before = content(run)
    with pytest.raises(DataError, match=r"5 held-out pictures are too few.*left out: 145 that the run was trained on"):
        calibrate(options(run, data))
    assert changed(before, run) == set()


@pytest.mark.parametrize("method", ["temperature", "none"])
def test_a_full_disk_changes_nothing(run, data, monkeypatch, method):  # fault 48
    calibrate(options(run, data, method="vector"))
    before = content(run)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transferkit.core.files.os.fsync", full)
    with pytest.raises(StorageError, match=r"cannot write '.*model.json': No space left"):
        calibrate(options(run, data, method=method))
    assert changed(before, run) == set()


def test_a_damaged_model_changes_nothing(run, data):  # fault 87
    (run / "model.safetensors").write_bytes(b"short")
    before = content(run)
    for method in ("temperature", "none"):
        with pytest.raises(CheckpointError, match="does not match the sha256"):
            calibrate(options(run, data, method=method))
    assert changed(before, run) == set()


def test_wrong_options():
    assert CalibrateConfig(run="r", data="").problems() == [
        "DATA is missing, expected a labelled folder, a manifest or 'sample'"
    ]
    assert CalibrateConfig(run="r", data="", method="none").problems() == []
    with pytest.raises(ConfigError, match="accelerator"):
        load("r", accelerator="tpu")
