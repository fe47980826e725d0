"""Compiled training steps: what a model learns from pictures as compiled code, made anew whenever its course changes.

What is compiled is the forward pass up to what the loss takes, and with it the backward pass; never what is saved, so
that names in checkpoints are as they were. Batches of another shape, evaluation and phases of the head alone run
eagerly.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transferkit.core.errors import ConfigError
from transferkit.core.text import first_line
from transferkit.machine.compiling import quiet_compiler
from transferkit.machine.lightning_import import Callback, L
from transferkit.machine.random import undisturbed
from transferkit.models.module import TransferModule

__all__ = ["CompiledSteps", "Learning", "compile_learning"]

MOST_EXPIRED = 3
"""How often code that no longer fits is made anew in a `fit`, before all steps are eager."""

log = logging.getLogger("transferkit")


class Learning:
    """What a module learns from pictures, as compiled code for batches of one shape.

    Args:
        module: In train mode; what learns and what is frozen stays so.
        images: ``(B, 3, H, W) float32, normalised``: a batch of the shape.
    """

    def __init__(self, module: TransferModule, images: Tensor) -> None:
        self.module = module
        self.shape, self.dtype, self.device = images.shape, images.dtype, images.device
        learning, head, passage = module.task.head_kinds.learning, module.head, module.passage

        def run(pictures: Tensor) -> Any:
            return learning(head, passage.run(pictures))

        # One graph or none: where Python would run between two graphs, the first would have moved statistics by the
        # time that the second cannot be made.
        self._code: Callable[[Tensor], Any] | None = torch.compile(run, fullgraph=True, dynamic=False)

    def __call__(self, images: Tensor) -> Any:
        """Return what `TransferModule.learn` does; ``None`` for pictures that the code is not made for."""
        if self._code is None or not (self.module.training and torch.is_grad_enabled()):
            return None
        if images.shape != self.shape or images.dtype != self.dtype or images.device != self.device:
            return None
        from torch._dynamo import config
        from torch._dynamo.exc import RecompileError

        try:
            with config.patch(error_on_recompile=True):
                return self._code(self.laid_out(images))
        except RecompileError as error:  # raised before anything has run
            log.warning("compiled steps no longer fit (%s); this one is eager", first_line(error))
            self._code = None
            return None

    @property
    def expired(self) -> bool:
        """Whether the code no longer fits: something else than the pictures has changed."""
        return self._code is None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Return nothing: the code is of this module, and its copies run eagerly."""

    def laid_out(self, images: Tensor) -> Tensor:
        """Return pictures in the strides that code is made for."""
        return images.contiguous(memory_format=self.module.passage.memory_format or torch.channels_last)

    def rehearse(self, images: Tensor, forward_context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Have the code made: by a step that leaves no trace.

        Args:
            images: A batch of the shape.
            forward_context: What forward passes run in.
        """
        assert self._code is not None
        with _traceless(self.module, images.device):
            with forward_context():
                loss = self._code(self.laid_out(images)).float().sum()
            torch.autograd.backward(loss)


def compile_learning(
    module: TransferModule,
    images: Tensor,
    forward_context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Learning | None:
    """Return compiled code of what a module learns, tried; ``None``, and a warning, where it cannot be had.

    Code that was made before is forgotten: it knows what learnt then, and counts towards dynamo's limit.

    Args:
        module: In train mode, and in the state that it is to be used in; it is as before afterwards.
        images: ``(B, 3, H, W) float32, normalised``: a batch of the shape that the code is for.
        forward_context: What forward passes run in.
    """
    torch.compiler.reset()
    try:
        with quiet_compiler():
            learning = Learning(module, images)
            learning.rehearse(images, forward_context)
    except Exception as error:  # no compiler, or one that cannot take this network: anything may come out of it
        log.warning("not compiled (%s); going on in eager mode", first_line(error))
        return None
    return learning


@contextlib.contextmanager
def _traceless(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put buffers, gradients and random generators of a module back at the end of the block."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with undisturbed(0, device):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class CompiledSteps(Callback):
    """Runs the training steps of a `TransferModule` as compiled code; works with a plain `lightning.Trainer`.

    Code is made at the first batch of a phase, and again where the size of pictures or what learns changes: once a
    phase and size, and a few times more where something else changes. It is made by a step that leaves no trace, so
    that a step of the run is taken whole, by compiled code or eagerly. In several processes all steps run eagerly.

    Args:
        console: Where to say that code is being made; ``None`` for nowhere.

    Attributes:
        made: How often code was made.
        seconds: How long that took, in all.

    Raises:
        ConfigError: At the start of `fit`, for a module of another kind.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.made, self.seconds = 0, 0.0
        self._course: tuple[bool, ...] | None = None
        self._made_for: tuple[Any, ...] | None = None
        self._failed = False
        self._expired = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be compiled by parts."""
        if not isinstance(pl_module, TransferModule):
            raise ConfigError(
                f"CompiledSteps compiles what a TransferModule learns, saw {type(pl_module).__name__} - compile the "
                "networks of a module of your own in it"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start without any code."""
        self._failed, self._expired = False, 0
        self._drop(pl_module)
        if trainer.world_size > 1:
            self._failed = True
            log.info("steps of several processes are not compiled")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look again at what learns."""
        self._course = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make code, where this batch is a whole one and there is none for it."""
        images = batch[0]
        if self._failed or not (isinstance(pl_module, TransferModule) and isinstance(images, Tensor)):
            return
        if isinstance(pl_module.compiled, Learning) and pl_module.compiled.expired:
            self._expired += 1
            self._drop(pl_module)
            if self._expired > MOST_EXPIRED:
                self._failed = True
                log.warning("compiled steps stopped fitting %d times; going on in eager mode", self._expired)
                return
        if self._course is None:
            self._course = _course(pl_module)
        if pl_module.passage.boundary is not None or pl_module.passage.is_frozen:
            self._drop(pl_module)
        elif len(images) == _whole_batch(trainer):
            state = (images.shape, images.device, self._course)
            if state != self._made_for:
                self._make(trainer, pl_module, images, state)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave nothing behind."""
        self._drop(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        self._drop(pl_module)

    def _make(self, trainer: L.Trainer, module: TransferModule, images: Tensor, state: tuple[Any, ...]) -> None:
        module.compiled = None
        height, width = images.shape[2:]
        if self.console is not None:
            self.console.print(f"compiling steps of {len(images)} pictures of {width} x {height}")
        started = time.perf_counter()
        module.compiled = compile_learning(module, images, trainer.precision_plugin.forward_context)
        self._failed = module.compiled is None
        self._made_for = state
        if not self._failed:
            self.made += 1
            self.seconds += time.perf_counter() - started
            log.info("compiled steps of %d x %d pixels in %.1f s", width, height, time.perf_counter() - started)

    def _drop(self, module: L.LightningModule) -> None:
        self._course = self._made_for = None
        if isinstance(module, TransferModule):
            module.compiled = None


def _whole_batch(trainer: L.Trainer) -> int | None:
    """Return how many pictures a batch has, but for the last one of an epoch; ``None`` where no loader says so."""
    loader = trainer.train_dataloader
    return loader.batch_size if isinstance(loader, DataLoader) else None


def _course(module: nn.Module) -> tuple[bool, ...]:
    """Return what compiled code depends on besides its input: what learns, and the mode of every part."""
    return (
        *(parameter.requires_grad for parameter in module.parameters()),
        *(part.training for part in module.modules()),
    )
