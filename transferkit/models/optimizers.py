"""Optimizers over static, named parameter groups.

Every parameter is in the optimizer from step 0, whether it trains yet or not, so that nothing is ever added to a
running optimizer: phases only toggle `requires_grad` and set learning rates. Groups run from input to output; each is
split into parameters that decay and those that do not (biases, norms, tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.core.errors import CheckpointError, ConfigError, did_you_mean, gather

__all__ = ["OPTIMIZERS", "Window", "build_optimizer", "check_optimizer_state", "param_groups"]

OPTIMIZERS = ("adamw", "sgd", "adam", "rmsprop")

NamedParameters = Sequence[tuple[str, nn.Parameter]]

# Learned vectors that are neither norms nor biases, yet describe positions rather than filters (timm's
# `no_weight_decay` of the transformer families).
UNDECAYED = (
    "pos_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "relative_position_bias_table",
    "gamma",
    "logit_scale",
)


LENGTHS = ".lora_magnitude_vector."
"""In the name of the lengths that DoRA learns, which are scales as those of a norm, whatever their shape."""


def param_groups(groups: Iterable[tuple[str, NamedParameters]], *, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups, in order.

    Args:
        groups: Name and named parameters of each group, from input to output.
        weight_decay: Of the decaying half; the other half has 0.

    Returns:
        Dictionaries with ``params`` (named), ``name`` (``"layer1.decay"``), ``group`` (``"layer1"``), ``weight_decay``.
    """
    result = []
    for group, parameters in groups:
        halves: dict[str, list[tuple[str, nn.Parameter]]] = {"decay": [], "no_decay": []}
        for name, parameter in parameters:
            plain = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in UNDECAYED or LENGTHS in name
            halves["no_decay" if plain else "decay"].append((name, parameter))
        for half, members in halves.items():
            if members:
                decay = weight_decay if half == "decay" else 0.0
                result.append({"params": members, "name": f"{group}.{half}", "group": group, "weight_decay": decay})
    return result


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, momentum: float = 0.9, nesterov: bool = True
) -> Optimizer:
    """Build an optimizer over `param_groups`.

    Fused kernels are used where torch has them for the parameters' device: one pass over all tensors per step.

    Args:
        name: One of `OPTIMIZERS`.
        groups: From `param_groups`.
        lr: Per step; a `PhaseSchedule` sets every group's own before each step.
        momentum: For ``sgd`` and ``rmsprop``, in [0, 1).
        nesterov: Nesterov momentum for ``sgd``; without momentum there is none.

    Raises:
        ConfigError: The optimizer is unknown.
    """
    devices = {parameter.device.type for group in groups for _, parameter in group["params"]}
    fused = devices <= {"cpu"} or devices <= {"cuda"}
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=fused)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)
    if name == "rmsprop":  # decay 0.99 is torch's default
        return torch.optim.RMSprop(groups, lr=lr, momentum=momentum)
    raise ConfigError(
        f"unknown optimizer {name!r}.{did_you_mean(name, OPTIMIZERS)} Known: {', '.join(sorted(OPTIMIZERS))}."
    )


class Window:
    """The batches whose gradients add up to a step: every picture of them counts alike.

    A last window of an epoch has fewer batches than the others, and a last batch fewer pictures. Divided by the number
    of batches that a window should have, their gradients would be too small, and each picture of a short batch would
    count for more. With full windows of equal batches nothing is changed, not even a rounding.
    """

    def __init__(self) -> None:
        self._first = 0
        self._pictures = 0

    def weigh(self, loss: Tensor, pictures: int) -> Tensor:
        """Return the mean loss of a batch as it counts beside those of the other batches of the window."""
        self._first = self._first or pictures
        self._pictures += pictures
        return loss if pictures == self._first else loss * (pictures / self._first)

    def settle(self, parameters: Iterable[nn.Parameter], accumulate: int) -> None:
        """Turn the sum of gradients, of losses divided by `accumulate`, into that of one large batch; begin anew."""
        factor = accumulate * self._first / self._pictures if self._pictures else 1.0
        self._first = self._pictures = 0
        if factor != 1.0:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


_ALWAYS = frozenset({"lr", "betas", "eps", "momentum", "weight_decay", "alpha"})
"""Options of a group that optimizers of every release of torch save; newer ones are filled in by torch."""


def check_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Refuse a saved optimizer state that belongs to other parameters; torch itself only counts them.

    Raises:
        CheckpointError: Names or order of the parameters differ, or the shape of what is remembered of one: torch's
            kernels write past the end of such a tensor.
    """
    _check_shapes(optimizer, state)
    needed = {"params", *(_ALWAYS & optimizer.defaults.keys())}
    lacking = sorted({key for group in state["param_groups"] for key in needed - group.keys()})
    if lacking:
        raise CheckpointError(
            f"the optimizer state in the checkpoint is damaged: its groups lack {gather(lacking)} - delete the "
            "checkpoint, or start anew"
        )
    saved = [name for group in state["param_groups"] for name in group.get("param_names", ())]
    current = [name for group in optimizer.param_groups for name in group["param_names"]]
    if saved == current:
        return
    differing = next(
        (pair for pair in zip(saved, current, strict=False) if pair[0] != pair[1]), (len(saved), len(current))
    )
    raise CheckpointError(
        f"the optimizer state in the checkpoint is of other parameters: saw {differing[0]!r}, expected "
        f"{differing[1]!r} - resume with the backbone and head that the run was started with"
    )


def _check_shapes(optimizer: Optimizer, state: dict[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, memory in state["state"].items():
        shape = parameters[place].shape if isinstance(place, int) and 0 <= place < len(parameters) else None
        for name, value in memory.items():
            if torch.is_tensor(value) and value.ndim and value.shape != shape:
                raise CheckpointError(
                    f"the optimizer state in the checkpoint is damaged: {name} of parameter {place} is "
                    f"{tuple(value.shape)}, expected {shape and tuple(shape)} - delete the checkpoint, or start anew"
                )
