"""`EMA`: an exponential moving average of the weights, which is what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError
from transferkit.machine.lightning_import import Callback, L, TrainerFn
from transferkit.models.freezing import frozen_modules
from transferkit.training.ranks.parallel import average, statistics

__all__ = ["EMA", "decay_at"]

KEY = "transferkit_ema"


def decay_at(decay: float, updates: int) -> float:
    """Return the decay of one update: ``min(decay, (1 + updates) / (10 + updates))``.

    The bound is TensorFlow's (`tf.train.ExponentialMovingAverage`, ``num_updates``). With it the average looks back
    over about a ninth of the steps so far; without it the starting values would keep a share of ``decay ** updates``,
    which is most of the average in a fine-tuning of a few hundred steps.

    Args:
        decay: The final decay, in (0, 1).
        updates: Updates made before this one.
    """
    return min(decay, (1 + updates) / (10 + updates))


class EMA(Callback):
    """Averages what learns after every optimizer step: ``average = d * average + (1 - d) * weights``, d by `decay_at`.

    Validation, and with it the choice of the best epoch, sees the average; training goes on with the weights
    themselves. In a checkpoint ``state_dict`` is the average, and the weights that training goes on with lie beside it.
    After `fit` the module holds the average.

    - What is averaged: parameters that learn, and the floating-point buffers of the parts that learn. A batch norm's
      running statistics are averaged like its weights, so that both describe the same stretch of training (as in timm's
      `ModelEmaV3`); they remain estimates, exact ones need a pass over the data. Integer buffers are the module's.
    - What is frozen is no part of it: in the average it is the module's own tensor, bit for bit. What a phase freezes
      leaves the average, and what a phase begins to train enters it with the values it starts from.
    - Whenever other tensors begin to learn, `updates` restarts at 0: the new ones begin there, and the old ones are
      trained at other learning rates from there.

    Lightning's `WeightAveraging` is not used. In Lightning 2.6.6 and torch 2.15 its average is made before the model
    is moved, so that on a GPU every step copies all weights to the CPU; torch's `AveragedModel` waits for the device at
    every step (``n_averaged > 0`` on a tensor); the decay is fixed; it starts before a solved head is softened; it
    averages what is frozen too, and `EMAWeightAveraging` by a formula that moves equal values by a rounding error.

    Args:
        decay: In (0, 1), such as 0.999; the more steps, the nearer to 1.

    Attributes:
        updates: Updates since other tensors began to learn.

    Raises:
        ConfigError: The decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ConfigError(f"ema is {decay}, expected a decay in (0, 1), such as 0.999")
        self.decay = decay
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}  # the module's own tensors, of the same names
        self._aside: dict[str, Tensor] | None = None  # the weights, while the module holds the average
        self._due = True
        self._step = 0

    @property
    def average(self) -> dict[str, Tensor]:
        """The average itself, by name in the module's state dict: what learns, and nothing else."""
        return dict(self._average)

    def statistics(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the averages of what each of several processes measures of its own pictures, by name."""
        own = statistics(module)
        return {f"ema {name}": tensor for name, tensor in self._average.items() if name in own}

    # ---- state ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average into ``state_dict``, and what it replaces beside it."""
        if not self._average:
            return  # nothing has been averaged yet
        state = checkpoint["state_dict"]
        raw = self._aside if self._aside is not None else {name: state[name] for name in self._average}
        checkpoint[KEY] = {"updates": self.updates, "raw": raw}
        state.update(self._average)

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average up, and give the module the weights that `fit` goes on with."""
        if KEY not in checkpoint or trainer.state.fn != TrainerFn.FITTING:
            return  # other jobs want the average, which the module has
        self.updates = checkpoint[KEY]["updates"]
        state, live = checkpoint["state_dict"], pl_module.state_dict()
        self._average = {name: state[name].clone() for name in checkpoint[KEY]["raw"]}
        for name, tensor in checkpoint[KEY]["raw"].items():
            live[name].copy_(tensor)

    # ---- hooks ------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget what an earlier `fit` left; a checkpoint is read after this."""
        if stage == "fit":
            self._average, self._live, self._aside, self.updates = {}, {}, None, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count optimizer steps from here."""
        self._due, self._step = True, trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See whether a phase began."""
        self._due = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Follow what learns; only here have all other callbacks prepared the module."""
        if self._due:
            self._follow(pl_module)
            self._due = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, where the optimizer took a step; before validation it becomes one for all processes."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._update()
        if trainer.world_size > 1 and batch_idx + 1 >= trainer.num_training_batches:
            average(self.statistics(pl_module).values())

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        if trainer.state.fn == TrainerFn.FITTING and self._live:
            self._aside = {name: tensor.clone() for name, tensor in self._live.items()}
            _copy(self._average.values(), self._live.values())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the weights."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the weights back, where validation was interrupted."""
        self._restore()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the module."""
        _copy(self._average.values(), self._live.values())
        self._average, self._live = {}, {}

    # ---- parts ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _follow(self, module: nn.Module) -> None:
        """Average exactly what learns now."""
        live = {name: tensor.detach() for name, tensor in _learning(module).items()}
        if live.keys() != self._average.keys():
            self.updates = 0
        # Like the live ones in device and strides: a single kernel then updates them all.
        self._average = {
            name: torch.empty_like(tensor).copy_(self._average.get(name, tensor)) for name, tensor in live.items()
        }
        self._live = live

    @torch.no_grad()
    def _update(self) -> None:
        weight = 1.0 - decay_at(self.decay, self.updates)
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), weight)
        self.updates += 1

    def _restore(self) -> None:
        if self._aside is not None:
            _copy(self._aside.values(), self._live.values())
            self._aside = None


def _learning(module: nn.Module) -> dict[str, Tensor]:
    """The saved floating-point tensors that training moves: the complement of the audit of frozen parts."""
    still = {id(buffer) for part in frozen_modules(module) for buffer in part.buffers()}
    return {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and (tensor.requires_grad if isinstance(tensor, nn.Parameter) else id(tensor) not in still)
    }


@torch.no_grad()
def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
