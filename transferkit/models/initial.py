"""Weights of an earlier run as the start of another: rows of the head go by the names of classes, labels or targets."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from transferkit.core.errors import BackboneError, TransferkitWarning
from transferkit.core.records import DataConfig
from transferkit.core.targets import TargetSpec
from transferkit.core.text import first_line, listing
from transferkit.models.artifact import INFO, WEIGHTS, product_of, read_info
from transferkit.models.module import TransferModule
from transferkit.models.weights.files import read_state_dict
from transferkit.models.weights.loading import load_backbone_weights

__all__ = ["load_weights_from"]


def load_weights_from(source: Path, module: TransferModule) -> tuple[str, ...]:
    """Start a module from the weights of an earlier run: backbone and head.

    Where the earlier run had other classes, or in another order, the rows of the head go by the classes' names; those
    of new classes stay as they are.

    Args:
        source: A run directory, its `model.safetensors`, or one of its checkpoints.
        module: Of the same backbone and head.

    Returns:
        The classes, labels or targets whose rows of the head are that run's; none where it names none.

    Raises:
        BackboneError: A tensor is missing or has another shape; the module is unchanged then.

    Warns:
        TransferkitWarning: The classes are others.
    """
    path = source / WEIGHTS if source.is_dir() else source
    read_state_dict(path)  # raises for everything that can be wrong with the file
    if path.suffix == ".safetensors":
        state = load_file(path)
        info = read_info(path.parent) if (path.parent / INFO).is_file() else None
        names, theirs = (None, None) if info is None else (info.class_names, info.preprocessing)
        facts: Mapping[str, Any] = {} if info is None else info.target_facts
    else:
        state, names, facts, theirs = _of_checkpoint(path)
    if theirs is not None and theirs.decoding.key_values() != module.data_config.decoding.key_values():
        before, here = (f"--ground {config.decoding.ground} --grey-bits {config.decoding.grey_bits}"
                        for config in (theirs, module.data_config))  # fmt: skip
        warnings.warn(
            f"{source}: its pictures were decoded with {before}, and these with {here} - pass the same",
            TransferkitWarning,
            stacklevel=2,
        )
    if any(".base_layer." in name for name in state):
        raise BackboneError(
            f"{path}: a checkpoint of a run with an adapter, not merged yet - give the run's directory, or its "
            "model.safetensors, where it is"
        )
    product = {name: tensor for name, tensor in state.items() if name.startswith(("backbone.", "head."))}
    taken: tuple[str, ...] = ()
    if names and module.class_names:
        product, taken = _by_class_name(product, module, TargetSpec(tuple(names), facts), str(source))
    load_backbone_weights(product_of(module), product, source=str(path))
    return taken


def _of_checkpoint(
    path: Path,
) -> tuple[dict[str, torch.Tensor], tuple[str, ...] | None, Mapping[str, Any], DataConfig | None]:
    """Return the tensors of a checkpoint, its class names, their facts, and how pictures were prepared; or ``None``.

    Raises:
        BackboneError: They are of other types.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)  # read and verified by `read_state_dict` before
    try:
        state = {str(name): tensor for name, tensor in content["state_dict"].items() if torch.is_tensor(tensor)}
        settings, stored = content.get("hyper_parameters", {}), content.get("transferkit_data_config")
        names = None if settings.get("class_names") is None else tuple(str(name) for name in settings["class_names"])
        return state, names, dict(settings.get("target_facts") or {}), stored and DataConfig.from_dict(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{path}: not a checkpoint that transferkit wrote ({first_line(error)}) - give a run directory, its "
            "model.safetensors or one of its checkpoints; other weights go to --weights"
        ) from error


def _by_class_name(
    product: dict[str, torch.Tensor], module: TransferModule, theirs: TargetSpec, source: str
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the tensors of a product whose head has a row per class of the module, in its order, and which it had."""
    names, ours, heads = theirs.names, module.target_spec, module.task.heads
    rows = {unicodedata.normalize("NFC", name): row for row, name in enumerate(names)}
    pairs = [(at, rows.get(unicodedata.normalize("NFC", name))) for at, name in enumerate(module.class_names)]
    fresh = [module.class_names[at] for at, row in pairs if row is None]
    gone = sorted(set(range(len(names))) - {row for _, row in pairs})
    if fresh or gone:
        parts = [f"names that start fresh: {listing(fresh)}"] if fresh else []
        parts += [f"names of it that are not here: {listing([names[row] for row in gone])}"] if gone else []
        warnings.warn(
            f"{source}: its head was taken over by name; {'; '.join(parts)}",
            TransferkitWarning,
            stacklevel=3,
        )
    own, result = product_of(module).state_dict(), dict(product)
    for key, tensor in product.items():
        mine = own.get(key)
        per_class = key.startswith("head.") and mine is not None and tensor.ndim and len(tensor) == len(names)
        if per_class and mine is not None and (len(mine), *tensor.shape[1:]) == (len(pairs), *mine.shape[1:]):
            result[key] = mine.detach().clone()
            for at, row in pairs:
                if row is not None:
                    bias = tensor.ndim == 1
                    result[key][at] = heads.row(tensor[row], bias=bias, theirs=(theirs, row), ours=(ours, at))
    return result, tuple(module.class_names[at] for at, row in pairs if row is not None)
