"""Overfitting a small sample: it reaches 100 %, and each reason why it may not is found and named."""

import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.checks.overfit import _course, choose_evenly, overfit


@pytest.fixture
def data(folder):
    return ImageData(folder, image_size=32, batch_size=6, augment="heavy")


def make_module(head="linear", backbone="test_resnet", **options):
    torch.manual_seed(0)
    arguments = {"drop_path_rate": 0.5} if backbone == "test_resnet" else None
    built = create_backbone(backbone, weights="random", image_size=32, backbone_args=arguments)
    return TransferModule(built, 3, head, **options)


def said(result, *words):
    """The one sentence of advice that has all the words."""
    matching = [line for line in result.advice if all(word in line for word in words)]
    assert len(matching) == 1, result.advice
    assert "\n" not in matching[0]
    return matching[0]


def run(module, data, **options):
    return overfit(module, data, **{"batches": 2, "epochs": 60, "lr": 3e-3, **options})


def test_a_sound_model_reaches_100_percent_in_both_modes(data):
    """Whatever stands in the way is off: freezing, dropout, drop path, smoothing, weight decay, augmentation."""
    calls = []
    module = make_module(drop_rate=0.9, label_smoothing=0.3, weight_decay=300.0)
    module.train_groups(["head"])
    start = {name: [p.clone() for _, p in members] for name, members in module.groups()}
    result = run(module, data, progress=lambda done, total: calls.append((done, total)))
    assert result.reached
    assert (result.train, result.evaluation, result.pictures) == (1.0, 1.0, 12)
    assert result.advice == ()
    assert result.epochs == len(result.losses) < 60
    assert result.losses[-1] < result.losses[0] / 3
    for name, members in module.groups():
        assert any(not p.equal(was) for (_, p), was in zip(members, start[name], strict=True)), name
    assert calls == [(epoch + 1, 60) for epoch in range(result.epochs)]
    # Measured again, from the files: the sample is what the module knows by heart.
    positions = choose_evenly(data.targets("train").tolist(), 12, data.seed)
    images, targets = data.dataset("train").batch(positions).labelled()
    assert not module.training
    with torch.no_grad():
        assert (module(normalise(images, data.data_config)).argmax(dim=1) == targets).all()


def test_it_is_a_function_of_module_and_seed(data):
    state = torch.get_rng_state()
    first = run(make_module(), data, epochs=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again_module = make_module()
    torch.set_rng_state(before)
    again = run(again_module, data, epochs=3)
    assert torch.get_rng_state().equal(before)
    assert first == again
    torch.set_rng_state(state)


def test_a_task_that_counts_no_right_answers_is_learnt_by_its_loss(data):
    module = make_module(backbone="test_vit")
    module.task = replace(module.task, objective=replace(module.task.objective, running=()))
    result = run(module, data, batches=1)
    assert (result.reached, result.figure, result.advice) == (True, "loss", ())
    assert max(result.train, result.evaluation) <= 0.01 * result.losses[0]
    assert result.to_dict().keys() == {"reached", "epochs", "train_loss", "eval_loss"}
    again = run(module, data, batches=1, epochs=1, lr=1e-9)  # a hundredth of what it knows by heart is too much to ask
    assert (again.reached, again.train) == (False, again.losses[-1])


def test_without_batch_norm(data):
    result = run(make_module(backbone="test_vit"), data, batches=1)
    assert result.reached
    assert result.pictures == 6


@pytest.mark.parametrize(
    ("targets", "count", "expected"),
    [
        ([0] * 50 + [1] * 5 + [2] * 45, 30, {0: 13, 1: 5, 2: 12}),
        ([0] * 50 + [1] * 50, 6, {0: 3, 1: 3}),
        ([0] * 3 + [2] * 2, 99, {0: 3, 2: 2}),
    ],
)
def test_the_sample_covers_classes_evenly(targets, count, expected):
    chosen = choose_evenly(targets, count, seed=0)
    assert len(set(chosen)) == len(chosen)
    counts = Counter(targets[position] for position in chosen)
    assert sum(counts.values()) == sum(expected.values())
    assert all(abs(counts[label] - number) <= 1 for label, number in expected.items())
    assert chosen == choose_evenly(targets, count, seed=0)
    if count < len(targets):
        assert chosen != choose_evenly(targets, count, seed=1)


def test_a_last_batch_of_one_is_left_out(data):  # fault 27
    data.batch_size = 23
    assert run(make_module(), data, epochs=1).pictures == 23


# --- why it may fail, from what was seen -------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(data):
    result = run(make_module(optimizer="sgd"), data, lr=1e30)
    assert not result.reached
    assert result.epochs < 60  # it stops at once
    said(result, f"the loss was not finite in epoch {result.epochs} at LR 1e+30 - lower it ten times")


def test_a_rate_too_low(data):
    result = run(make_module(), data, lr=1e-9, epochs=3)
    assert not result.reached
    said(result, "the loss did not fall, from 1.", "in 3 epochs at LR 1e-09 (guessing costs 1.1)", "LR is too low")


def test_too_few_epochs(data):
    result = run(make_module(backbone="test_vit"), data, lr=2e-4, epochs=2)
    assert not result.reached
    assert result.losses[1] < 0.9 * result.losses[0]
    said(result, "the loss was still falling, from ", "in 2 epochs", "give it more epochs")
    single = run(make_module(), data, epochs=1, lr=1e-9)
    said(single, "a single epoch is too few")


def test_a_rate_too_high(data):
    result = run(make_module(optimizer="sgd"), data, lr=30.0, epochs=4)
    assert not result.reached
    said(result, "the loss rose", "the LR is too high - lower it ten times")


class DetachingHead(nn.Module):
    """Cuts its input off, or all of its work."""

    def __init__(self, where):
        super().__init__()
        self.linear = nn.Linear(32, 3)
        self.where = where

    def forward(self, features):
        if self.where == "input":
            return self.linear(features.detach())
        return self.linear(features).detach()


def width():
    return make_module().backbone.num_features


def test_groups_without_a_gradient_are_named_even_where_it_is_reached(data):
    head = DetachingHead("input")
    head.linear = nn.Linear(width(), 3)
    result = run(make_module(head), data, lr=0.1, epochs=200)
    names = ", ".join(name for name in make_module().group_names() if name != "head")
    said(result, f"no gradient reached {names} - look for detach()")
    assert len(result.advice) == 1 + (not result.reached)


def test_a_model_cut_off_as_a_whole_stops_at_once(data):
    head = DetachingHead("output")
    head.linear = nn.Linear(width(), 3)
    result = run(make_module(head), data)
    assert (result.reached, result.epochs) == (False, 1)
    assert len(result.advice) == 1
    said(result, "no gradient reached stem, ", ", head - look for")


def test_the_same_picture_with_two_labels(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "own")
    circles, squares = (sorted((root / "train" / name).iterdir()) for name in ("circle", "square"))
    for circle, square in zip(circles[:5], squares[:5], strict=True):
        square.write_bytes(circle.read_bytes() + b"more")  # other bytes, the same pixels
    data = ImageData(root, image_size=32, batch_size=24, allow_leaks=True)
    with pytest.warns(TransferkitWarning, match="5 pictures with more than one label"):
        assert data.index
    result = run(make_module(), data, batches=1, epochs=15)
    assert not result.reached
    assert result.pictures == 24
    conflicts = [line for line in result.advice if "are the same picture to the model" in line]
    assert len(conflicts) == 3
    pairs = [(str(circle), str(square)) for circle, square in zip(circles, squares, strict=True)]
    assert all(any(a in line and b in line for a, b in pairs) for line in conflicts)
    assert all("(circle)" in line and "(square)" in line for line in conflicts)
    said(result, "2 more pictures are the same as one of another class")


def test_right_in_train_mode_only_is_batch_norm(data):
    module = make_module()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0  # statistics that never follow
            layer.running_mean.fill_(50.0)
    result = run(module, data, epochs=10)
    assert (result.reached, result.train) == (False, 1.0)
    assert result.evaluation < 1.0
    said(result, "all pictures are right in train mode, ", "running statistics of batch norm", "--recalibrate-bn")


class TwoFaced(nn.Module):
    """Spoils its answer in one of the modes: all of it in eval mode, or in train mode that for the first picture."""

    def __init__(self, in_features, spoilt):
        super().__init__()
        self.linear = nn.Linear(in_features, 3)
        self.spoilt = spoilt

    def forward(self, features):
        logits = self.linear(features)
        if self.spoilt == "eval" and not self.training:
            return -logits
        if self.spoilt == "train" and self.training:
            spoilt = torch.zeros_like(logits)
            spoilt[0, logits[0].argmax()] = -20.0
            return logits + spoilt
        return logits


def test_right_in_train_mode_only_without_batch_norm(data):
    in_features = make_module(backbone="test_vit").backbone.num_features
    result = run(make_module(TwoFaced(in_features, "eval"), backbone="test_vit"), data, batches=1)
    assert (result.reached, result.train) == (False, 1.0)
    said(result, "all pictures are right in train mode", "`self.training` is not set")


def test_right_in_eval_mode_only(data):
    result = run(make_module(TwoFaced(width(), "train")), data, epochs=25, lr=1e-3)
    assert (result.reached, result.train, result.evaluation) == (False, 10 / 12, 1.0)
    said(result, "all pictures are right in eval mode, 83.3% in train mode", "draws at random in training")


def test_a_loss_that_goes_up_and_down():
    assert "the loss fell, but not to the end, from 1 to 0.7" in _course([1.0, 0.5, 0.7], 1e-3, 1.1)
    assert "the loss was still falling" in _course([1.0, 0.7, 0.5], 1e-3, 1.1)


def test_what_is_still_wrong_is_listed(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "own")
    circle = sorted((root / "train" / "circle").iterdir())[0]
    odd = root / "train" / "square" / "odd.png"
    odd.write_bytes(circle.read_bytes() + b"more")
    data = ImageData(root, image_size=32, batch_size=25, allow_leaks=True)
    with pytest.warns(TransferkitWarning, match="1 pictures with more than one label"):
        assert data.index
    result = run(make_module(), data, batches=1, epochs=40)
    assert not result.reached
    assert result.evaluation == pytest.approx(24 / 25)
    line = said(result, "1 of 25 pictures are still wrong - look at their labels: ")
    assert f"{odd} (square, taken for circle)" in line or f"{circle} (circle, taken for square)" in line


def test_bad_arguments(data, folder, tmp_path):
    with pytest.raises(ConfigError, match=r"\(1\) batches is 0.*\(2\) epochs is -1.*\(3\) lr is nan"):
        overfit(make_module(), data, batches=0, epochs=-1, lr=float("nan"))
    with pytest.raises(ConfigError, match="the data have 3 classes, the model 5"):
        backbone = create_backbone("test_resnet", weights="random", image_size=32)
        overfit(TransferModule(backbone, 5), data, batches=1, epochs=1, lr=1e-3)
    data.batch_size = 1
    with pytest.raises(ConfigError, match="batch_size is 1, expected a whole number of at least 2"):
        run(make_module(), data)
    gone = shutil.copytree(folder, tmp_path / "gone")
    reading = ImageData(gone, image_size=32, batch_size=6, keep_bytes=0, pixel_store="off")
    reading.index  # noqa: B018 - indexed before the pictures go
    shutil.rmtree(gone / "train")
    with pytest.raises(DataError, match="cannot be read any more"):
        run(make_module(), reading)
