"""Augmentation on the device and own steps, through every door of training: run, resume, repeat, plan, range test."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from small_runs import SignalAt

from transferkit.cli.main import main
from transferkit.core.errors import CheckpointError, ConfigError, Interrupted
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.tryout import try_augmentation
from transferkit.features.extract.extract import extract_features
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig, PlanConfig
from transferkit.training.checks.selftest import Trace, compare_traces
from transferkit.training.finetune import finetune
from transferkit.training.setup import prepare

STEPS = """
- RandomResizedCrop: {scale: [0.5, 1.0]}
- HorizontalFlip
- OneOf:
    transforms:
      - Affine: {rotate: [-10, 10], border_mode: BORDER_REFLECT_101}
      - GaussianBlur: {blur_limit: [3, 5]}
    p: 0.3
"""


@pytest.fixture
def steps_file(tmp_path):
    path = tmp_path / "steps.yaml"
    path.write_text(STEPS, encoding="utf-8")
    return path


def weights(run):
    return load_file(run / "model.safetensors")


def equal(one, other):
    return all(one[name].equal(other[name]) for name in one)


def test_both_places_train_alike(quick, tmp_path, capsys):
    runs = {}
    for where in ("cpu", "device"):
        finetune(**{**quick, "quiet": False}, augment_on=where, out=tmp_path / where)
        runs[where] = weights(tmp_path / where)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("augment ")]
    assert lines == [
        "augment  standard, on the CPU: as --augment-on has it",
        "augment  standard, on the device: as --augment-on has it",
    ]
    assert not equal(runs["cpu"], runs["device"])  # pixels differ by less than a level
    for name, tensor in runs["cpu"].items():
        if name.startswith(("backbone.", "head.")) and tensor.is_floating_point():
            assert (tensor - runs["device"][name]).abs().mean() < 0.02, name


def test_what_auto_chose_is_kept(quick, tmp_path, capsys):
    finetune(**{**quick, "quiet": False}, out=tmp_path / "run")
    assert "augment  standard, on the CPU: albumentations is faster than torch there" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert config["augment_on"] == "cpu"
    with pytest.raises(CheckpointError, match="augment_on was 'cpu', is now 'device'"):
        finetune(out=tmp_path / "run", resume=True, augment_on="device")
    finetune(out=tmp_path / "run", resume=True, augment_on="auto", quiet=True)


@pytest.mark.parametrize("own", [False, True])
def test_a_resume_goes_on_as_if_nothing_had_been(quick, tmp_path, steps_file, own):  # fault 52
    options = {**quick, **({"augment": str(steps_file)} if own else {"augment_on": "device"}), "mixup": 0.2}
    finetune(**options, out=tmp_path / "whole", callbacks=[Trace(tmp_path / "whole.trace")])
    trace = Trace(tmp_path / "halves.trace")
    with pytest.raises(Interrupted):
        finetune(**options, out=tmp_path / "halves", callbacks=[trace, SignalAt(9)])
    steps_file.unlink()
    finetune(out=tmp_path / "halves", resume=True, quiet=True, callbacks=[trace])
    assert compare_traces(tmp_path / "halves.trace", tmp_path / "whole.trace") == []
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))


def test_a_run_of_own_steps_is_repeated_without_their_file(quick, tmp_path, steps_file):
    finetune(**{**quick, "augment": str(steps_file)}, out=tmp_path / "first")
    steps_file.unlink()
    words = ["--config", str(tmp_path / "first" / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet"]
    assert main(["finetune", *words]) == 0
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "again"))


def test_steps_are_the_same_from_every_door(quick, tmp_path, steps_file):
    listed = yaml.safe_load(STEPS)
    as_json = tmp_path / "steps.json"
    as_json.write_text(json.dumps(listed), encoding="utf-8")
    values = [make_config(FinetuneConfig, {**quick, "augment": value}).augment
              for value in (str(steps_file), steps_file, str(as_json), listed, tuple(listed))]  # fmt: skip
    assert all(value == listed for value in values)


@pytest.mark.parametrize(("content", "words"), [
    ("- HorizontalFlip: {p: 0.5", "steps.yaml: not YAML"),
    ("HorizontalFlip", "expected a list of steps, one at least, got 'HorizontalFlip'"),
    ("[]", "expected a list of steps, one at least, got"),
    ("- {A: 1, B: 2}", "step 1 is {.* - a step is a name, or a name with arguments"),
    ("- !!python/object/apply:os.system ['true']", "steps.yaml: not YAML"),
    ("- HorizontalFlp", "step 1: albumentations has no transform 'HorizontalFlp'"),
])  # fmt: skip
def test_files_that_are_refused_before_anything_else(quick, tmp_path, steps_file, content, words):
    steps_file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        finetune(**{**quick, "data": "nowhere", "augment": str(steps_file)}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("augment", "words"), [
    ("steps.yml", r"--augment steps.yml cannot be read \(No such file"),
    ("heavi", "--augment is 'heavi'. Did you mean 'heavy'"),
    ([object()], "a step is a name"), ([{"Affine": {"rotate": object()}}], "expected numbers, words, lists"),
    ([{"Affine": {"turn": 1}}], "Affine has no argument 'turn'"),
])  # fmt: skip
def test_values_that_are_refused(quick, augment, words):
    with pytest.raises(ConfigError, match=words):
        finetune(**{**quick, "augment": augment})


def test_no_flip_is_of_the_presets(quick, steps_file):
    with pytest.raises(ConfigError, match="--no-flip is of the presets"):
        finetune(**{**quick, "augment": str(steps_file)}, no_flip=True)


@pytest.mark.parametrize(("steps", "words"), [
    ([{"ToGray": {"num_output_channels": 1, "p": 0.01}}], "expected .32, 32, 3. of uint8"),
    ([{"RandomCrop": {"height": 45, "width": 45, "p": 0.01}}], "cannot be done to a picture of 40 x 46"),
])  # fmt: skip
def test_own_steps_are_tried_on_the_pictures_that_are_there(folder, tmp_path, steps, words):
    """The smallest is among them, and what happens once in a hundred times happens."""
    data = shutil.copytree(folder, tmp_path / "data")
    path = next((data / "train" / "square").glob("005.png"))
    with Image.open(path) as image:
        image.resize((46, 40)).save(path)  # the smallest, and not the longest
    with pytest.raises(ConfigError, match=words):
        try_augmentation(ImageData(data, 32, augment=steps))
    own = ImageData(data, 32, augment=[{"RandomCrop": {"height": 40, "width": 40, "p": 0.01}}])
    try_augmentation(own)


def test_a_step_that_draws_by_itself_is_noticed(folder, monkeypatch):
    import albumentations as A

    monkeypatch.setattr(A.InvertImg, "apply", lambda self, img, **_: (img + np.random.randint(1, 99)).astype(np.uint8))
    data = ImageData(folder, 32, augment=["InvertImg"])
    with pytest.raises(ConfigError, match="draws by itself"):
        try_augmentation(data)


@pytest.mark.parametrize("words", [
    ("plan",), ("lr-find", "--steps", "30"), ("finetune", "--overfit-batches", "1"), ("finetune", "--dry-run"),
])  # fmt: skip
def test_other_verbs(folder, tmp_path, words):
    options = ["--data", str(folder), "--backbone", "test_resnet", "--weights", "random", "--image-size", "32",
               "--batch-size", "8", "--precision", "32", "--accelerator", "cpu", "--workers", "0", "--augment-on",
               "device", "--augment", "standard", "--out", str(tmp_path / "out"), "--phases", "finetune"]  # fmt: skip
    assert main([*words, *options, "--quiet"]) in (0, 5)  # a random network may not learn a batch by heart


def test_gradient_norms_of_a_plan_see_what_training_sees(quick, tmp_path, monkeypatch):
    options = {name: value for name, value in quick.items() if name != "quiet"}
    seen = []
    from transferkit.training.plan import preview

    real = preview.relative_gradient_norms
    monkeypatch.setattr(preview, "relative_gradient_norms", lambda module, batches: (
        seen.append(batches[0][0]), real(module, batches))[1])  # fmt: skip
    for where in ("cpu", "device"):
        config = make_config(PlanConfig, {**options, "augment_on": where, "phases": "finetune"})
        preview.write_preview(config, out=str(tmp_path / where), rgn=True, quiet=True)
    assert 0 < (seen[0] - seen[1]).abs().mean() < 0.02


def test_two_ranks_take_turns_with_the_same_pictures(folder):
    data = ImageData(folder, 32, batch_size=4, augment="standard", augment_on="device")
    alone = ImageData(folder, 32, batch_size=24, augment="standard", augment_on="device")
    whole = alone.prepare(next(iter(alone.train_loader(0, 1))), train=False)[0]
    ranks = [
        torch.cat([data.prepare(batch, train=False)[0] for batch in data.train_loader(rank, 2)]) for rank in (0, 1)
    ]
    together = torch.stack(ranks, dim=1).flatten(0, 1)
    assert (together - whole).abs().mean() < 1e-3


def test_views_of_own_steps_have_rows_of_their_own(folder, tmp_path):
    options = {"data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "views": 1,
               "store": str(tmp_path / "store"), "precision": "32", "accelerator": "cpu", "workers": 0}  # fmt: skip

    def computed(steps):
        return extract_features(**options, augment=steps).facts["computed"]

    assert computed([{"Affine": {"rotate": [-10, 10], "p": 1}}]) == 45
    assert computed([{"Affine": {"rotate": [-10, 10], "p": 1}}]) == 0
    assert computed([{"Affine": {"rotate": [-11, 11], "p": 1}}]) == 45
    with pytest.raises(ConfigError, match="has no argument 'rot'"):
        computed([{"Affine": {"rot": 3}}])


@pytest.mark.parametrize("augment", ["heavy", ["HorizontalFlip"]])
def test_the_device_is_refused_before_the_weights_are_looked_at(quick, augment):
    with pytest.raises(ConfigError, match="--augment-on device: "):
        prepare(make_config(FinetuneConfig, {**quick, "augment": augment, "augment_on": "device"}), quiet=True)
