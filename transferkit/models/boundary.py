"""The freeze boundary: a network entered in the middle, at what its last frozen stage returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from transferkit.models.backbones.interface import Backbone

__all__ = ["Boundary", "last_frozen_stage"]


def last_frozen_stage(backbone: Backbone, group_names: Sequence[str], trained: Sequence[str]) -> str | None:
    """Return the stage at the end of the frozen part, ``""`` if all of the backbone is frozen, or ``None``.

    Args:
        backbone: The backbone.
        group_names: The model's groups, input to output, the head last.
        trained: Those that learn. Unless they are the last ones, and what is before them ends with a stage, there is
            no boundary.
    """
    frozen = [name for name in group_names if name not in trained]
    if not frozen or list(group_names[: len(frozen)]) != frozen:
        return None
    if len(frozen) == len(group_names) - 1:
        return ""
    return frozen[-1] if frozen[-1] in backbone.stages() else None


class Boundary:
    """A backbone cut in two: it runs up to the boundary, and from there on.

    To start in the middle the frozen part is still called, on one blank picture, and the stage's output is replaced by
    the activations: that works for every network whose later layers use nothing of the frozen part but this output.
    `agrees` finds out.

    Args:
        backbone: Frozen up to the stage, and in eval mode there.
        stage: Name of the last frozen stage; ``""`` when all of it is frozen, and the activations are the features.
        run: The backbone's forward, to features or maps.
    """

    def __init__(self, backbone: Backbone, stage: str, run: Callable[[Tensor], Tensor]) -> None:
        self.stage = stage
        self._run = run
        self._shape = backbone.data_config.input_shape
        self._output: Tensor | None = None
        self._entry: Tensor | None = None
        self._handle = backbone.stages()[stage].register_forward_hook(self._hook) if stage else None

    def _hook(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        self._output = output
        return output if self._entry is None else self._entry

    def reach(self, images: Tensor) -> Tensor:
        """Return the activations at the boundary, an ordinary tensor without gradient.

        Args:
            images: ``(B, 3, H, W) float32``, normalised.
        """
        with torch.inference_mode():
            out = self._run(images)
            activations = out if not self.stage else self._output
        assert activations is not None
        self._output = None
        return activations.clone()

    def leave(self, activations: Tensor) -> Tensor:
        """Return features (or maps) of the pictures that `activations` belong to, with gradients where layers learn."""
        if not self.stage:
            return activations
        blank = torch.zeros(1, *self._shape, device=activations.device)
        self._entry = activations
        try:
            return self._run(blank.contiguous(memory_format=torch.channels_last))
        finally:
            self._entry, self._output = None, None

    def agrees(self, images: Tensor) -> bool:
        """Whether going in two steps gives what going in one does, on these pictures, in the present modes."""
        with torch.no_grad():
            whole, stepped = self._run(images).float(), self.leave(self.reach(images)).float()
        return whole.shape == stepped.shape and torch.allclose(whole, stepped, rtol=1e-3, atol=1e-4)

    def close(self) -> None:
        """Take the hook out of the network."""
        if self._handle is not None:
            self._handle.remove()
