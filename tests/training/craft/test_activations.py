"""Activations at the freeze boundary: computed once a phase, the same training; used only where that is true."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SignalAt
from torch import nn

from transferkit.core.errors import Interrupted
from transferkit.models.backbones.registry import create_backbone, register_backbone
from transferkit.models.boundary import Boundary, last_frozen_stage
from transferkit.models.module import TransferModule
from transferkit.training.craft import activations as kept_activations
from transferkit.training.finetune import finetune

TOP = [{"name": "top", "epochs": 3, "train": ["head", "layer4"], "lr": 1e-3}]


@pytest.fixture
def top(folder, tmp_path):
    """Options of a run in which only the last group and the head train, without augmentation."""
    return {
        "data": str(folder), "image_size": 32, "batch_size": 8, "augment": "none", "precision": "32", "workers": 0,
        "accelerator": "cpu", "quiet": True, "phases": TOP, "out": str(tmp_path / "kept"),
    }  # fmt: skip


@pytest.fixture
def prefix_pictures(monkeypatch):
    """Pictures that the stem has seen, batch by batch."""
    sizes = []

    def listened(*args, **options):
        backbone = create_backbone(*args, **options)
        stem = next(backbone.model.children())
        stem.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return backbone

    monkeypatch.setattr("transferkit.training.setup.create_backbone", listened)
    return sizes


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def test_the_same_training_with_the_frozen_part_run_once(top, prefix_pictures):
    with_it = finetune(**top)
    with_kept = list(prefix_pictures)
    prefix_pictures.clear()
    plain = finetune(**{**top, "out": f"{top['out']}-plain", "keep_activations": "off"})
    assert with_it.metrics["val"]["acc"] == plain.metrics["val"]["acc"]
    assert with_it.metrics["val"]["loss"] == pytest.approx(plain.metrics["val"]["loss"], rel=1e-3)
    before = weights(plain.path)
    for name, tensor in weights(with_it.path).items():
        torch.testing.assert_close(tensor.float(), before[name].float(), rtol=2e-3, atol=2e-4)
    # 24 training pictures in three epochs of three steps: once each, and a blank one a step, instead of three times.
    assert sum(prefix_pictures) - sum(with_kept) >= 3 * 24 - 24 - 3 * 3 - 24
    assert with_kept.count(1) >= 9
    assert prefix_pictures.count(1) < 9


def test_a_resume_equals_an_undisturbed_run(top):  # fault 52
    whole = finetune(**top)
    other = f"{top['out']}-stopped"
    with pytest.raises(Interrupted):
        finetune(callbacks=[SignalAt(5)], **{**top, "out": other})
    resumed = finetune(out=other, resume=True, quiet=True)
    expected = weights(whole.path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.path).items())


def test_a_frozen_backbone_gives_its_features_once(top, prefix_pictures, caplog):
    with caplog.at_level(logging.INFO, "transferkit"):
        finetune(**{**top, "phases": [{"name": "probe", "epochs": 4, "train": "head", "lr": 1e-2}]})
    assert "MB of activations of the features" in caplog.text
    # every epoch evaluates the 12 val pictures; the 24 training pictures are run once (and once for `agrees`)
    assert sum(prefix_pictures) < 4 * 24 + 4 * 12


def test_phases_of_different_depth_keep_their_own(top, caplog):
    phases = [
        {"name": "probe", "epochs": 2, "train": "head"},
        {"name": "top", "epochs": 2, "train": ["head", "layer4"]},
        {"name": "more", "epochs": 2, "train": ["head", "layer[34]"]},
        {"name": "all", "epochs": 2, "train": "all"},
    ]
    with caplog.at_level(logging.INFO, "transferkit"):
        run = finetune(**{**top, "phases": phases})
    stages = [record.message.partition("activations of ")[2] for record in caplog.records if "MB of" in record.message]
    assert stages == ["the features", "layer3", "layer2"]
    assert [phase["epochs"] for phase in run.metrics["phases"]] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"augment": "light"},
        {"phases": [{**TOP[0], "epochs": 1}]},
        {"phases": [{**TOP[0], "train": ["head", "layer2"]}]},
        {"phases": [{**TOP[0], "train": "all"}]},
        {"keep_activations": "off"},
    ],
)
def test_where_it_is_not_the_same_nothing_is_kept(top, options, caplog):
    with caplog.at_level(logging.INFO, "transferkit"):
        finetune(**{**top, **options})
    assert "MB of activations" not in caplog.text


def test_activations_that_do_not_fit_are_not_kept(top, caplog, monkeypatch):
    monkeypatch.setattr(kept_activations, "free_memory", lambda: 1000)
    with caplog.at_level(logging.INFO, "transferkit"):
        finetune(**top)
    assert "do not fit into a quarter of the free memory" in caplog.text
    assert "MB of activations" not in caplog.text


class Skipping(nn.Module):
    """Its last block looks at the first one's output too: it cannot be entered in the middle."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Conv2d(3, 8, 3, padding=1)
        self.layer2 = nn.Conv2d(8, 8, 3, padding=1)
        self.layer4 = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, images):
        first = self.layer1(images)
        second = self.layer2(first)
        if len(first) != len(second):
            first = first.expand_as(second)
        return self.layer4(torch.cat((first, second), dim=1))


def test_a_network_that_cannot_be_entered_trains_as_usual(top, caplog):
    register_backbone("skipping-for-boundary")(Skipping)
    with caplog.at_level(logging.INFO, "transferkit"):
        finetune(**{**top, "backbone": "skipping-for-boundary", "weights": "random"})
    assert "the network cannot be entered at layer2" in caplog.text
    assert "MB of activations" not in caplog.text


def test_where_the_frozen_part_ends():
    backbone = create_backbone("transferkit/mini", image_size=32)
    names = TransferModule(backbone, 3).group_names()
    assert last_frozen_stage(backbone, names, ("head",)) == ""
    assert last_frozen_stage(backbone, names, ("layer4", "head")) == "layer3"
    assert last_frozen_stage(backbone, names, names) is None
    assert last_frozen_stage(backbone, names, ("layer2", "head")) is None  # layer3 is frozen behind it
    assert last_frozen_stage(backbone, names, ("layer1", "layer2", "layer3", "layer4", "head")) is None  # a stem


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_two_steps_are_one(name):
    backbone = create_backbone(name, weights="random", image_size=None).eval()
    images = torch.randn(3, 3, *backbone.data_config.image_size)
    for stage in list(backbone.stages())[:-1]:
        boundary = Boundary(backbone, stage, backbone.forward)
        assert boundary.agrees(images)
        boundary.close()
