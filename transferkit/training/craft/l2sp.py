"""`L2SP`: fine-tuning that is pulled towards the weights it started from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.core.errors import ConfigError
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.freezing import require_groups
from transferkit.models.module import HEAD

__all__ = ["L2SP"]


class L2SP(Callback):
    """Adds ``strength / 2 * ||w - w0||^2`` to the loss, over the backbone's weights w and their starting values w0.

    L2-SP (Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    eq. 2 and 3). It takes the place of weight decay in the backbone, whose groups get a decay of 0; the head has no
    starting values worth keeping and goes on with the optimizer's weight decay (the paper's beta). As in the paper,
    every parameter of the backbone is pulled, biases and norms too.

    The penalty enters as its gradient ``strength * (w - w0)``, once per optimizer step, after the gradients of all
    micro-batches and processes are joined and before they are clipped; ``train_loss`` is reported without it. Only what
    learns is pulled. An adaptive optimizer rescales this gradient as it does every other; the paper used SGD.

    w0 is what the run begins with; it is in every checkpoint, so that a resumed run is pulled to the same place.

    Args:
        strength: The paper's alpha, above 0.

    Raises:
        ConfigError: The strength is out of range; at the start of `fit`, the Trainer scales its loss (fp16) or its
            module has no layer groups.
    """

    def __init__(self, strength: float) -> None:
        if not (math.isfinite(strength) and strength > 0):
            raise ConfigError(f"l2_sp is {strength}, expected a finite number above 0, such as 0.01")
        self.strength = strength
        self._starts: dict[str, Tensor] = {}
        self._pulled: list[tuple[nn.Parameter, Tensor]] = []

    # ---- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the starting values by parameter name."""
        return {"starts": dict(self._starts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the starting values of the process that is being continued."""
        self._starts = dict(state_dict["starts"])

    # ---- hooks ------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what it cannot work with, and forget an earlier `fit`; a checkpoint is read after this."""
        if stage != "fit":
            return
        require_groups(pl_module, "L2SP")
        if trainer.precision == "16-mixed":  # a fused optimizer takes the scale off within its step, after our hook
            raise ConfigError("L2SP cannot add to the scaled gradients of precision 16-mixed - use 32 or bf16")
        self._starts, self._pulled = {}, []

    @torch.no_grad()
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the backbone starts, and take weight decay off it."""
        groups = require_groups(pl_module, "L2SP").groups()
        backbone = {name: parameter for group, members in groups if group != HEAD for name, parameter in members}
        self._starts = {
            name: torch.empty_like(parameter).copy_(self._starts.get(name, parameter))
            for name, parameter in backbone.items()
        }
        self._pulled = [(parameter, self._starts[name]) for name, parameter in backbone.items()]
        for group in trainer.optimizers[0].param_groups:
            if group["group"] != HEAD:
                group["weight_decay"] = 0.0

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient."""
        learning = [(p.grad, p, start) for p, start in self._pulled if p.grad is not None]  # else frozen
        if learning:
            gradients, weights, starts = (list(column) for column in zip(*learning, strict=True))
            torch._foreach_add_(gradients, torch._foreach_sub(weights, starts), alpha=self.strength)
