"""Build timm networks and fit weights to them, so that every tensor is known to come from the file.

timm turns strict loading off whenever the number of classes differs, and then a file without one matching name leaves
a random network behind with a line in the log. So the weights are loaded by `weights.load_backbone_weights` first,
which wants every tensor. Only where that fails does timm's own loader get a try, since it knows how to convert other
formats and to resample position embeddings; what it did is then checked tensor by tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.models.backbones.facts import construction
from transferkit.models.backbones.timm_import import PretrainedCfg, timm
from transferkit.models.weights.checkpoint import Checkpoint
from transferkit.models.weights.loading import load_backbone_weights

__all__ = ["build_network", "load_network", "whole_network"]

_FOREIGN_CLASSIFIERS = ("head", "fc", "classifier", "heads.head", "head.fc")
_COUNTER = "num_batches_tracked"  # of batch norm; evaluation does not use it


def build_network(name: str, cfg: PretrainedCfg, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network of `cfg` without a classifier and with random weights.

    Raises:
        BackboneError: timm or the network does not accept the arguments.
    """
    with construction(name, arguments):
        return _create(cfg, arguments, num_classes=0)


def whole_network(cfg: PretrainedCfg) -> nn.Module:
    """Build the network of `cfg` with its own classifier and random weights."""
    return _create(cfg, {}, num_classes=cfg.num_classes)


def load_network(model: nn.Module, cfg: PretrainedCfg, arguments: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Put `checkpoint` into `model`, which `build_network` made from the same `cfg` and `arguments`.

    Raises:
        BackboneError: Not every tensor of the network has its value from the file. The model is unchanged then.
    """
    classifiers = _classifiers(cfg)
    try:
        load_backbone_weights(model, checkpoint.state, source=checkpoint.source, classifier=classifiers)
    except BackboneError:
        converted = _converted(model, cfg, arguments, checkpoint.state)
        if converted is None:
            raise
        model.load_state_dict(converted)


def _converted(
    model: nn.Module, cfg: PretrainedCfg, arguments: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Return the tensors of `model` as timm's loader makes them of `state`; ``None`` unless all come from there."""
    for num_classes in _class_counts(cfg, state):
        try:
            first = _through_timm(cfg, arguments, num_classes, state)
            tensors = {key: first[key] for key in model.state_dict()}
            doubtful = [key for key, value in tensors.items() if not _same(state.get(key), value)]
            if doubtful:
                # A tensor that was converted follows when the file's numbers change; one that timm passed over keeps
                # the value it was initialised with, for both runs draw the same random numbers.
                changed = {k: v * 2 + 1 if v.is_floating_point() else v for k, v in state.items()}
                second = _through_timm(cfg, arguments, num_classes, changed)
                doubtful = [key for key in doubtful if _unmoved(key, tensors[key], second[key])]
        except Exception:  # filters meant for other files fail in any way; the caller has the message that helps
            continue
        finite = all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point())
        if not doubtful and finite:
            return tensors
    return None


def _class_counts(cfg: PretrainedCfg, state: Mapping[str, Tensor]) -> list[int]:
    """Return how many classes the file may have: with its own number timm loads strictly.

    Under timm's name for the classifier the number can be read off. Otherwise there is no classifier, or one under
    another library's name, which timm's filter will rename.
    """
    for name in (*_classifiers(cfg), *_FOREIGN_CLASSIFIERS):
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.ndim > 1:
            return [int(weight.shape[0])]
    return [0, cfg.num_classes]


def _through_timm(
    cfg: PretrainedCfg, arguments: Mapping[str, Any], num_classes: int, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _create(cfg, arguments, num_classes=num_classes, state=state).state_dict()


def _create(
    cfg: PretrainedCfg, arguments: Mapping[str, Any], *, num_classes: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Call timm's factory with weights from memory or none; it never gets a place to fetch from."""
    bare = dataclasses.replace(
        cfg, url=None, file=None, hf_hub_id=None, hf_hub_filename=None, source=None, custom_load=False
    )
    overlay = {} if state is None else {"state_dict": dict(state), "num_classes": num_classes}
    model: nn.Module = timm.create_model(
        str(cfg.architecture),
        pretrained=state is not None,
        pretrained_cfg=bare,
        pretrained_cfg_overlay=overlay,
        num_classes=num_classes,
        **arguments,
    )
    for facts in (model.pretrained_cfg, model.default_cfg):
        if isinstance(facts, dict):
            facts.pop("state_dict", None)  # timm keeps a second copy of the weights there
    return model


def _classifiers(cfg: PretrainedCfg) -> tuple[str, ...]:
    names = cfg.classifier or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _same(stored: Tensor | None, value: Tensor) -> bool:
    return stored is not None and stored.shape == value.shape and torch.equal(stored.to(value.dtype), value)


def _unmoved(name: str, first: Tensor, second: Tensor) -> bool:
    """Whether a tensor ignored the file. Counters and index tables (integers) say nothing either way."""
    return not name.endswith(_COUNTER) and first.is_floating_point() and torch.equal(first, second)
