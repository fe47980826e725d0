"""While only the last groups train on pictures that do not change: the frozen part is run once, not every epoch."""

from __future__ import annotations

import logging

import torch
from rich.console import Console

from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.loader import ImageLoader
from transferkit.machine.cores import free_memory
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.boundary import Boundary, last_frozen_stage
from transferkit.models.module import TransferModule
from transferkit.training.loop.phase_schedule import PhaseSchedule, running_epoch

__all__ = ["CachedActivations"]

log = logging.getLogger("transferkit")


class CachedActivations(Callback):
    """Holds what the last frozen stage returns for every training picture in memory, for the length of a phase.

    Used where it is exact and pays: no augmentation, at least two epochs, decoding in this process, a frozen part that
    ends with a stage, and activations that fit into a quarter of the free memory. Elsewhere the phase trains as usual.
    Nothing is written; a resumed run computes them again.

    Args:
        schedule: Knows the phases.
        module: What is trained.
        data: Its training pictures are the ones.
        console: Where to say that the frozen part is being run; ``None`` for nowhere.
    """

    def __init__(
        self, schedule: PhaseSchedule, module: TransferModule, data: ImageData, console: Console | None = None
    ) -> None:
        self.schedule = schedule
        self.module = module
        self.data = data
        self.console = console
        self._phase: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start without any."""
        self._phase = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """At the first epoch of a phase in this process, compute what can be held."""
        plan = self.schedule.plan
        index = plan.phase_at(running_epoch(trainer))
        if index == self._phase:
            return
        self._phase = index
        self._drop(trainer)
        phase = plan.phases[index]
        stage = last_frozen_stage(self.module.backbone, plan.group_names, phase.trained(plan.layout))
        loader = trainer.train_dataloader
        if stage is None or self.data.augment != "none" or phase.epochs < 2 or not isinstance(loader, ImageLoader):
            return
        if self.data.train_sizes.vary or loader.num_workers or trainer.world_size > 1 or self.module.feed.on_pixels:
            return
        self._compute(trainer, loader, stage)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave nothing behind."""
        self._drop(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        self._drop(trainer)

    def _compute(self, trainer: L.Trainer, loader: ImageLoader, stage: str) -> None:
        module, dataset, size = self.module, loader.dataset, loader.batch_size or 1
        boundary = module.passage.open_boundary(stage)
        rows: torch.Tensor | None = None
        module.eval()
        with trainer.precision_plugin.forward_context():
            for start in range(0, len(dataset), size):
                batch = range(start, min(start + size, len(dataset)))
                images = normalise(dataset.batch(batch).labelled()[0].to(module.device), module.data_config)
                if rows is None:
                    if not self._worth(boundary, images, len(dataset)):
                        break
                    if self.console is not None:
                        place = stage or "the features"
                        self.console.print(f"running the frozen part once: {len(dataset):,} pictures up to {place}")
                activations = boundary.reach(images).cpu()
                if rows is None:
                    rows = activations.new_empty((len(dataset), *activations.shape[1:]))
                rows[start : start + len(activations)] = activations
        module.train()
        if rows is None:
            module.passage.close_boundary()
            return
        dataset.stand_in(rows)
        log.info("kept %.0f MB of activations of %s", rows.numel() * rows.element_size() / 1e6, stage or "the features")

    def _worth(self, boundary: Boundary, images: torch.Tensor, pictures: int) -> bool:
        """Whether the activations of all pictures fit into memory, and the network can be entered at them."""
        first = boundary.reach(images[:1])
        if pictures * first.numel() * first.element_size() > free_memory() // 4:
            log.info("activations of %s do not fit into a quarter of the free memory", boundary.stage)
            return False
        if not boundary.agrees(images):
            log.info("the network cannot be entered at %s", boundary.stage)
            return False
        return True

    def _drop(self, trainer: L.Trainer) -> None:
        self.module.passage.close_boundary()
        if isinstance(trainer.train_dataloader, ImageLoader):
            trainer.train_dataloader.dataset.stand_in(None)
