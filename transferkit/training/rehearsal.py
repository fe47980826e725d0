"""The rehearsal: what a training will do at its end, and every size that it will use, is tried before it begins."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transferkit.core.errors import ConfigError, StorageError, TransferkitError
from transferkit.core.text import first_line, listing
from transferkit.machine.random import undisturbed
from transferkit.models.artifact import load_model, save_model
from transferkit.models.backbones.registry import require_memory
from transferkit.models.freezing import restored_modes
from transferkit.models.module import TransferModule
from transferkit.models.tuning.adapters import rehearse_merging
from transferkit.options.sizes import scaled_to, train_sizes
from transferkit.options.training import TrainingOptions

__all__ = ["rehearse", "rehearse_saving"]


def rehearse_saving(run: Path, module: TransferModule) -> None:
    """Write a model as it will be written at the end, read it back, and compare; nothing stays in the directory.

    Args:
        run: The run directory.
        module: On the CPU.

    Raises:
        ConfigError: It cannot be read back as it was.
        StorageError: The disk is full or read-only.
    """
    if module.adapter is not None:  # it is merged at the end, and computes nothing yet
        module = copy.deepcopy(module)
        module.merge_adapter(module.backbone.blank_picture())
    with tempfile.TemporaryDirectory(prefix=".rehearsal.", dir=run) as folder, undisturbed(0, "cpu"):
        try:
            info = save_model(Path(folder), module)
            loaded, _ = load_model(Path(folder), head=copy.deepcopy(module.head) if info.head is None else None)
        except StorageError:
            raise
        except Exception as error:  # of a backbone or a head that is not ours
            raise ConfigError(
                f"the model of this run could be trained, but not saved and loaded again ({first_line(error)}) - "
                f"correct the backbone {module.backbone.name} or its head"
            ) from error
        before, after = module.state_dict(), loaded.state_dict()
        lost = [name for name in before if name in after and not torch.equal(before[name], after[name])]
        lost += [name for name in before if name.startswith(("backbone.", "head.")) and name not in after]
        if lost:
            raise ConfigError(
                f"the model of this run would not be loaded as it was saved: {listing(lost)} - correct the backbone "
                f"{module.backbone.name} or its head"
            )


def rehearse(config: TrainingOptions, module: TransferModule) -> None:
    """Run pictures of each size through a model, as it is used and as it is trained; it is as before afterwards.

    An adapter is merged in a copy, with random weights.

    Args:
        config: With the sizes and the batch size.
        module: On the CPU.

    Raises:
        TrainingError: An adapter cannot be merged.
        ConfigError: The model does not take a size, or cannot be trained on a batch of one picture.
    """
    own = module.data_config.image_size
    sizes = [("--image-size", own)]
    sizes += [("--train-size", scaled_to(side, own)) for side in dict.fromkeys(train_sizes(config.train_size))]
    batch = 1 if config.batch_size == 1 else 2
    for flag, size in sizes:
        require_memory(size, flag, batch)
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with restored_modes(module), undisturbed(config.seed, "cpu"), torch.no_grad():
        try:
            for flag, (height, width) in sizes:
                images = torch.zeros(batch, module.data_config.channels, height, width)
                asked = f"{height}" if height == width else f"{height}x{width}"
                remedy = "pass another" if flag == "--image-size" else f"leave it out, or pass --image-size {asked}"
                network = f"{flag} {asked}: {module.backbone.name}, set up for {own[0]} x {own[1]} pixels,"
                _run(module.eval().forward, images, f"{network} does not take {height} x {width}", remedy)
                if batch == 1:
                    network, remedy = f"--batch-size 1: {module.backbone.name}", "pass --batch-size 2 or more"
                message = f"{network} with this head cannot be trained on such batches"
                _run(module.train().learn, images, message, remedy)
            if module.adapter is not None:
                rehearse_merging(module.backbone, module.feed)
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def _run(forward: Callable[[torch.Tensor], Any], images: torch.Tensor, message: str, remedy: str) -> None:
    try:
        forward(images).sum()  # heads whose losses wait for the answers run only then
    except TransferkitError:
        raise
    except Exception as error:  # a network that is not ours may raise anything
        raise ConfigError(f"{message} ({first_line(error)}) - {remedy}") from error
