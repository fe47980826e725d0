"""Weights as they are published: under the prefixes of self-supervised trainings, beside projectors and students."""

import pytest
import timm
import torch

from transferkit.core.errors import BackboneError, TransferkitWarning
from transferkit.models.backbones.registry import create_backbone


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=0).state_dict()


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def loaded(path):
    return create_backbone("test_resnet", weights=str(path), image_size=32).model.state_dict()


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (lambda state: {"state_dict": {**under("module.encoder_q.", state), "module.queue": torch.zeros(3)}},
         "encoder_q."),
        (lambda state: {"teacher": {**under("backbone.", state), "head.mlp.0.weight": torch.zeros(2, 2)}, "epoch": 7},
         "teacher.backbone."),
        (lambda state: {**under("encoder.", state), "projector.0.weight": torch.zeros(2, 2)}, "encoder."),
        (lambda state: {"student": {"other": torch.zeros(1)}, "teacher": dict(state)}, "teacher."),
    ],
)  # fmt: skip
def test_the_one_prefix_that_fits_is_used_and_said(tmp_path, state, content, prefix):  # fault 110
    torch.save(content(state), tmp_path / "x.pth")
    with pytest.warns(TransferkitWarning, match=f"taken from under '{prefix}'"):
        weights = loaded(tmp_path / "x.pth")
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())


def test_two_that_fit_are_an_error_that_names_both(tmp_path, state):  # fault 110
    torch.save({"student": dict(state), "teacher": under("backbone.", state)}, tmp_path / "x.pth")
    with pytest.raises(BackboneError, match="2 networks that fit, under 'student.', 'teacher.backbone.'"):
        loaded(tmp_path / "x.pth")


def test_weights_of_another_network_under_a_prefix_do_not_fit(tmp_path, state):
    fewer = dict(list(state.items())[:-2])
    torch.save(under("encoder.", fewer), tmp_path / "x.pth")
    with pytest.raises(BackboneError, match="do not fit the backbone"):
        loaded(tmp_path / "x.pth")
