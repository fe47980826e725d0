"""What a model learns from another one: the answers of a teacher, in place of the labels of pictures or beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from transferkit.models.answers.regression import Units

__all__ = ["ClassTeaching", "LabelTeaching", "NumberTeaching", "SoftenedLoss", "Teaching"]


class Teaching(Protocol):
    """How the outputs of a teacher become what the training loss takes."""

    @property
    def softens(self) -> bool:
        """Whether there are probabilities that a temperature can soften."""

    def answers(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return what a teacher says, as the training loss takes targets.

        Args:
            outputs: ``(..., width) float32``, not calibrated.
            temperature: That they are divided by, at least 1; not looked at where nothing can be softened.
        """

    def mixed(self, answers: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return the answers of a teacher, mixed with the true ones.

        A loss that is linear in its targets is then `share` of the loss against the teacher and the rest of that
        against the truth.

        Args:
            answers: ``(V, N, ...)``, see `answers`, of V views.
            targets: ``(N, ...)``, the true ones.
            share: Of the teacher, in [0, 1].
        """


@dataclass(frozen=True)
class ClassTeaching:
    """Probabilities of classes (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*, eq. 1)."""

    softens: bool = True

    def answers(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return probabilities ``(..., C)``."""
        return (outputs / temperature).softmax(dim=-1)

    def mixed(self, answers: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return shares of classes, for targets ``(N,) int64``."""
        truth = functional.one_hot(targets, answers.shape[-1]).to(answers.dtype)
        return share * answers + (1 - share) * truth


@dataclass(frozen=True)
class LabelTeaching:
    """A probability of each label."""

    softens: bool = True

    def answers(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return probabilities ``(..., C)``."""
        return (outputs / temperature).sigmoid()

    def mixed(self, answers: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return shares of labels, for targets ``(N, C)`` of 0 and 1."""
        return share * answers + (1 - share) * targets.to(answers.dtype)


@dataclass(frozen=True)
class NumberTeaching:
    """Numbers in their own units.

    Attributes:
        units: Of the teacher.
    """

    units: Units = Units()
    softens: bool = False

    def answers(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return numbers ``(..., T)``."""
        return self.units.in_own_units(outputs)

    def mixed(self, answers: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return numbers between the teacher's and the true ones ``(N, T)``; the teacher's where that is not known."""
        between = share * answers + (1 - share) * targets.to(answers.dtype)
        return between.where(~between.isnan(), answers)


class SoftenedLoss(nn.Module):
    """A loss of softened outputs, times the square of the temperature.

    The gradients of softened outputs are smaller by about that square (Hinton et al. 2015, section 2), so the LR keeps
    its meaning. There the loss against the true labels is of outputs that are not softened; here both are alike.

    Args:
        loss: From outputs ``(B, width)`` and targets to a scalar.
        temperature: At least 1.
    """

    def __init__(self, loss: nn.Module, temperature: float) -> None:
        super().__init__()
        self.loss, self.temperature = loss, temperature

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        loss: Tensor = self.loss(outputs / self.temperature, targets) * self.temperature**2
        return loss

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"temperature={self.temperature}"
