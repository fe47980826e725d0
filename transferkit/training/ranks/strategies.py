"""How Lightning runs a training in several processes: strategy, environment, norms that see all pictures; quietly."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from transferkit.core.errors import ConfigError
from transferkit.core.logs import quiet_loggers
from transferkit.machine.lightning_import import (
    ClusterEnvironment,
    DDPStrategy,
    L,
    LayerSync,
    LightningEnvironment,
    PossibleUserWarning,
    SLURMEnvironment,
    Strategy,
    TorchElasticEnvironment,
)
from transferkit.models.backbones.timm_import import convert_sync_batchnorm
from transferkit.models.freezing import evaluation_mode
from transferkit.models.module import TransferModule
from transferkit.training.ranks.connecting import STEP

__all__ = [
    "PhasedDDP",
    "SyncNorms",
    "make_environment",
    "make_strategy",
    "quiet_lightning",
    "unused_parameters",
    "wrap_again",
]

DDP = {
    "auto": False,
    "ddp": False,
    "ddp_find_unused_parameters_false": False,
    "ddp_find_unused_parameters_true": True,
}
"""Names of the strategies that are ours, and whether parameters without gradients are always looked for."""

IN_MEMORY = ("spawn", "fork", "notebook")
"""Of strategies that start processes from a running one, in which the steps before training would be lost."""


class PhasedDDP(DDPStrategy):
    """DDP for a training in phases: its reducer is made anew when other parameters begin to learn (`wrap_again`).

    A reducer knows the parameters that learnt when it was made, and no others (trap 4). Buffers are not sent around in
    forward passes: their running statistics are averaged once an epoch.

    Args:
        unused: Always look for parameters that the loss does not depend on, not only where there is one.
    """

    def __init__(self, *, unused: bool = False) -> None:
        option = "forward_sync_buffers"  # torch 2.13; before that, "broadcast_buffers"
        if option not in inspect.signature(DistributedDataParallel.__init__).parameters:
            option = "broadcast_buffers"
        buffers: dict[str, Any] = {option: False}
        super().__init__(timeout=STEP, find_unused_parameters=unused, **buffers)
        self.unused = unused

    def look_for_unused(self, module: L.LightningModule) -> None:
        """Have the next reducer expect parameters without gradients, where there are some."""
        self._ddp_kwargs["find_unused_parameters"] = self.unused or (
            isinstance(module, TransferModule) and bool(unused_parameters(module))
        )


def wrap_again(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Have DDP reduce the gradients of the parameters that learn now; nothing to do for other strategies."""
    strategy = trainer.strategy
    if isinstance(strategy, PhasedDDP):
        strategy.look_for_unused(module)
    if isinstance(strategy, DDPStrategy):
        strategy.model = module  # with its wrapper goes the old reducer, and with that its hooks
        strategy.configure_ddp()


def unused_parameters(module: TransferModule) -> list[str]:
    """Return the names of parameters that learn and that the outputs do not depend on."""
    learning = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    images = torch.zeros(1, *module.data_config.input_shape, device=module.device)
    with evaluation_mode(module), torch.enable_grad():  # neither statistics nor random numbers move
        outputs = module.learn(images)
        gradients = torch.autograd.grad(outputs.sum(), [parameter for _, parameter in learning], allow_unused=True)
    return [name for (name, _), gradient in zip(learning, gradients, strict=True) if gradient is None]


def make_strategy(name: str, processes: int) -> str | Strategy:
    """Return the strategy of a Trainer.

    Args:
        name: ``"auto"``, or one of Lightning's.
        processes: In all.

    Raises:
        ConfigError: It starts processes in a way that a run cannot follow.
    """
    if processes == 1:
        return name
    if name in DDP:
        return PhasedDDP(unused=DDP[name])
    if any(word in name for word in IN_MEMORY):
        raise ConfigError(f"--strategy {name} copies a running process, expected one that starts them anew - pass ddp")
    return name


def make_environment(processes: int) -> ClusterEnvironment:
    """Return who starts the processes: torchrun, SLURM's srun where it started just so many, or Lightning.

    Lightning is given it, so that other traces of a batch system in the environment change nothing.

    Args:
        processes: In all.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if processes > 1 and SLURMEnvironment.detect():
        environment = SLURMEnvironment(auto_requeue=False)  # runs go on with --resume
        if environment.world_size() == processes:
            return environment
    return LightningEnvironment()


class SyncNorms(LayerSync):
    """Batch norms that normalise by the pictures of all GPUs.

    By timm's conversion: torch's own makes plain ones of timm's norms that hold their activation, and drops that.
    """

    def __init__(self) -> None:
        self._own: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Put synchronised ones in their places."""
        self._own = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.modules.batchnorm._BatchNorm)
        ]
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the model's own norms back, with the statistics measured meanwhile."""
        for parent, name, own in self._own:
            used = getattr(parent, name)
            for key, buffer in used.named_buffers(recurse=False):
                setattr(own, key, buffer)
            own.train(used.training)
            setattr(parent, name, own)
        self._own = []
        return model


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's own remarks, which speak of its options and not of ours, out of the output."""
    with quiet_loggers(logging.ERROR, "lightning.pytorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
        yield
