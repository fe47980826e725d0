"""The rehearsal: every size that a training will use is run through the model once, before anything is computed."""

from __future__ import annotations

import torch

from transferkit.core.errors import ConfigError, TransferkitError
from transferkit.core.text import first_line
from transferkit.machine.random import undisturbed
from transferkit.models.freezing import restored_modes
from transferkit.models.module import TransferModule
from transferkit.options.training import TrainingOptions

__all__ = ["rehearse"]


def rehearse(config: TrainingOptions, module: TransferModule) -> None:
    """Run pictures of each size through a model, as it is used and as it is trained; it is as before afterwards.

    Args:
        config: With the sizes and the batch size.
        module: On the CPU.

    Raises:
        ConfigError: The model does not take a size, or cannot be trained on a batch of one picture.
    """
    own = module.data_config.image_size
    sizes = {"--image-size": own}
    if config.train_size is not None:
        sizes["--train-size"] = (config.train_size, config.train_size)
    batch = 1 if config.batch_size == 1 else 2
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with restored_modes(module), undisturbed(config.seed, "cpu"), torch.no_grad():
        try:
            for flag, (height, width) in sizes.items():
                images = torch.zeros(batch, 3, height, width)
                remedy = "pass another" if flag == "--image-size" else f"leave it out, or pass --image-size {height}"
                network = f"{flag} {height}: {module.backbone.name}, set up for {own[0]} x {own[1]} pixels,"
                _run(module.eval(), images, f"{network} does not take {height} x {width}", remedy)
                if batch == 1:
                    network, remedy = f"--batch-size 1: {module.backbone.name}", "pass --batch-size 2 or more"
                _run(module.train(), images, f"{network} with this head cannot be trained on such batches", remedy)
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def _run(module: TransferModule, images: torch.Tensor, message: str, remedy: str) -> None:
    try:
        module(images)
    except TransferkitError:
        raise
    except Exception as error:  # a network that is not ours may raise anything
        raise ConfigError(f"{message} ({first_line(error)}) - {remedy}") from error
