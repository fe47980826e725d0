"""The LightningModule: backbone + head + loss + metrics, with freezing that survives `.train()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.core.errors import CheckpointError, ConfigError, gather
from transferkit.core.records import DataConfig
from transferkit.core.targets import TargetSpec
from transferkit.machine.lightning_import import L, MeanMetric, MetricCollection
from transferkit.models.answers.running import RunningSums
from transferkit.models.answers.teaching import SoftenedLoss
from transferkit.models.backbones.registry import Backbone, create_backbone
from transferkit.models.freezing import keep_frozen_eval, keep_statistics, set_trainable
from transferkit.models.heads.feed import pooled
from transferkit.models.heads.passage import Passage
from transferkit.models.optimizers import NamedParameters, Window, build_optimizer, check_optimizer_state, param_groups
from transferkit.models.parts import LossOptions
from transferkit.models.task import Task, task_named
from transferkit.models.tuning.adapters import Adapter, add_adapter, merge_adapter
from transferkit.models.tuning.layout import cut_groups, layout_of, train_parts
from transferkit.models.tuning.selectors import ADAPTER, HEAD, Selector, parse_selector
from transferkit.models.unlike.distance import TrainingDistance
from transferkit.options.sizes import ImageSize

__all__ = ["HEAD", "TransferModule"]


class TransferModule(L.LightningModule):
    """A pretrained backbone with a head of its own, ready for a plain `lightning.Trainer`.

    Batches are ``(images, targets)``: images ``(B, 3, H, W) float32, normalised``, targets as the task has them: of
    classification ``(B,) int64 in [0, C)`` or, for training, shares of the classes ``(B, C) float32``.

    Args:
        backbone: A name for `create_backbone`, or a backbone.
        num_classes: Number of classes C, at least 2; of another task, of what its head returns.
        head: A name for the task's `HeadKinds`, such as ``"linear"`` or ``"attention-pool"``; or any ``nn.Module``.
        weights: ``"pretrained"``, ``"bundled"``, ``"random"``, a file or ``"hf-hub:ID"``; for a backbone given by name.
        image_size: Side of the input in pixels, or ``(height, width)``; the backbone's own when ``None``.
        channels: Of the pictures; the backbone's own when ``None``.
        class_names: In index order; ``"0"``, ``"1"``, ... when ``None``.
        task: The kind of answer: a name for `task_named`, or a task.
        target_facts: What else travels with the names, see `TargetSpec`.
        drop_rate: Dropout in the head, in [0, 1).
        label_smoothing: Of the training loss, in [0, 1); validation reports the plain negative log-likelihood.
        loss: The training loss, such as ``"cross_entropy"`` or ``"focal"`` (with `focal_gamma`, at least 0); ``"auto"``
            is the task's own.
        class_weights: Weight of each class in the training loss, in index order.
        optimizer: ``"adamw"``, ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
        lr: Per step, where no `PhaseSchedule` sets it.
        weight_decay: Not applied to biases, norms and position embeddings.
        momentum: For ``sgd`` and ``rmsprop``.
        nesterov: For ``sgd``.
        adapter: What is put on the backbone's layers and learns instead of them, as `adapt` does.
        backbone_args: Passed to the backbone's constructor, such as ``{"drop_path_rate": 0.1}``.

    Attributes:
        keeps_statistics: Whether batch norm of the backbone uses its running statistics in training, too.
        passage: The way of pictures to the head.
        compiled: Compiled code that training steps ask first for what the loss takes; it returns ``None`` for pictures
            that it is not made for.
        lr_cuts: Parts of layer groups that have an LR of their own; a `PhaseSchedule` sets them.
        to_loggers: Whether a Trainer hands the figures of an epoch to its loggers; `finetune` logs whole rows itself.

    Raises:
        ConfigError: An argument is out of range, or the head does not fit.
        BackboneError: The backbone is unknown, or its weights cannot be had.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        num_classes: int,
        head: str | nn.Module = "linear",
        *,
        weights: str = "pretrained",
        image_size: ImageSize = None,
        channels: int | None = None,
        class_names: Sequence[str] | None = None,
        task: str | Task = "classification",
        target_facts: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        label_smoothing: float = 0.0,
        loss: str = "auto",
        focal_gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        adapter: Adapter | Mapping[str, Any] | None = None,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        names = tuple(map(str, range(num_classes))) if class_names is None else tuple(class_names)
        self.target_spec = TargetSpec(names, dict(target_facts or {}))
        self.task = (task if isinstance(task, Task) else task_named(task)).of(self.target_spec)
        _check(self.task, self.target_spec, num_classes, label_smoothing, lr)
        if isinstance(backbone, str):
            backbone = create_backbone(
                backbone, weights=weights, image_size=image_size, channels=channels, backbone_args=backbone_args
            )
        self.backbone = backbone
        self.num_classes, self.class_names = num_classes, names
        self.feed = self.task.head_kinds.feed(head)
        self.head = self.task.head_kinds.build(head, backbone, num_classes, drop_rate=drop_rate)
        self._loss_options = LossOptions(loss, focal_gamma, class_weights, label_smoothing)
        self.loss = self._loss()
        self.optimizer_options = {"name": optimizer, "lr": lr, "momentum": momentum, "nesterov": nesterov}
        self.weight_decay = weight_decay
        self.val_metrics = self._metrics("val_", self.task.objective.watched)
        self.test_metrics = self._metrics("test_", self.task.objective.watched)
        self.unlike: TrainingDistance | None = None  # of a finished model: how far pictures are from the training ones
        self.passage = Passage(self.backbone, self.feed)
        self.compiled: Callable[[Tensor], Any] | None = None
        self.to_loggers, self.keeps_statistics = True, False
        self.lr_cuts: tuple[Selector, ...] = ()
        self._window, self._running = Window(), RunningSums(self.task.objective.running)
        if isinstance(head, str):
            # The weights of a checkpoint come from its own state dict, so rebuilding needs no pretrained file.
            config, weights_of_classes = backbone.data_config, None if class_weights is None else list(class_weights)
            self.save_hyperparameters(
                {
                    "backbone": backbone.name, "num_classes": num_classes, "head": head, "weights": "random",
                    "image_size": list(config.image_size), "channels": config.channels if backbone.adapted else None,
                    "class_names": list(self.class_names), "task": self.task.name,
                    "target_facts": dict(self.target_spec.facts), "drop_rate": drop_rate,
                    "label_smoothing": label_smoothing, "loss": loss, "focal_gamma": focal_gamma,
                    "class_weights": weights_of_classes, "optimizer": optimizer, "lr": lr,
                    "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
                    "backbone_args": dict(backbone_args or {}),
                },
                logger=False,
            )  # fmt: skip
        self.adapter: Adapter | None = None
        if adapter is not None:
            self.adapt(Adapter.of(adapter))

    @property
    def data_config(self) -> DataConfig:
        """The preparation of pictures for this model."""
        return self.backbone.data_config

    def setup(self, stage: str) -> None:
        """Take over how the data are decoded and shown: whoever uses the model later has to do likewise."""
        theirs = getattr(getattr(self.trainer, "datamodule", None), "data_config", None)
        if stage == "fit" and isinstance(theirs, DataConfig):
            self.backbone.data_config = self.data_config.shown_as(theirs)

    def soften(self, temperature: float) -> None:
        """Divide outputs by a temperature, at least 1, in the training loss: what a softened teacher is learnt by."""
        self.loss = self._loss(temperature)

    def _loss(self, temperature: float = 1.0) -> nn.Module:
        """Return the training loss: a head may make that of the task harder."""
        loss = self.task.objective.loss(self._loss_options, self.num_classes)
        return self.task.head_kinds.loss(self.head, SoftenedLoss(loss, temperature) if temperature > 1 else loss)

    def _metrics(self, prefix: str, names: Sequence[str]) -> MetricCollection:
        return MetricCollection(
            {"loss": MeanMetric(nan_strategy="disable"), **self.task.objective.metrics(names, self.num_classes)},
            prefix=prefix,
            compute_groups=False,
        )

    def watch(self, figure: str) -> None:
        """Measure one more figure on `val` after every epoch, such as one that chooses the epoch.

        Args:
            figure: One of the task's `Objective.monitors`.
        """
        names = dict.fromkeys((*self.task.objective.watched, figure))
        self.val_metrics = self._metrics("val_", [name for name in names if name != "loss"]).to(self.device)

    # ---- freezing ---------------------------------------------------------------------------------------------

    def groups(self) -> list[tuple[str, NamedParameters]]:
        """Return every parameter exactly once: the backbone's layer groups from input to output, then ``"head"``."""
        layers = [(group.name, [(f"backbone.{n}", p) for n, p in group.parameters]) for group in
                  self.backbone.layer_groups()]  # fmt: skip
        return [*layers, (HEAD, [(f"head.{name}", parameter) for name, parameter in self.head.named_parameters()])]

    def group_names(self) -> tuple[str, ...]:
        """Return the names of `groups`, in order."""
        return tuple(name for name, _ in self.groups())

    def train_groups(self, names: Sequence[str]) -> None:
        """Let exactly the groups `names` learn; all others are frozen: no gradient, eval mode through `.train()`."""
        chosen = [parameter for name, members in self.groups() if name in names for _, parameter in members]
        set_trainable(self, chosen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in eval mode, and so does batch norm whose statistics are kept."""
        super().train(mode)
        if mode:
            keep_frozen_eval(self)
            if self.keeps_statistics:
                keep_statistics(self.backbone)
        return self

    def adapt(self, adapter: Adapter) -> str:
        """Let an adapter on the backbone, and the head, learn; return in words what was adapted; see `add_adapter`."""
        words = add_adapter(self.backbone, adapter, adapter.layers(layout_of(self)))
        self.adapter = adapter
        train_parts(self, parse_selector(f"{HEAD}, {ADAPTER}").select(layout_of(self)))
        return words

    def merge_adapter(self, images: Tensor) -> float:
        """Make the backbone a plain one that computes the same for these pictures; see `merge_adapter`."""
        difference, self.adapter = merge_adapter(self.backbone, self.feed, images), None
        return difference

    # ---- forward ----------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C)`` for images ``(B, 3, H, W) float32, normalised``.

        Of masks ``(B, C, H, W)``; of objects detections ``(B, K, 6 or more)``, see
        `transferkit.models.objects.detector.Detector`.
        """
        outputs: Tensor = self.head(self.passage.inputs(images))
        return outputs

    def learn(self, images: Tensor) -> Any:
        """Return what the training loss takes, for images as `forward` takes them: as a rule the same logits."""
        outputs = None if self.compiled is None else self.compiled(images)
        return self.learn_eagerly(images) if outputs is None else outputs

    def learn_eagerly(self, images: Tensor) -> Any:
        """Return the same without compiled code."""
        return self.task.head_kinds.learning(self.head, self.passage.inputs(images))

    def features_and_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return penultimate features ``(B, D)`` and what `forward` does, by one pass; not for training."""
        inputs = self.passage.run(images)
        return pooled(self.backbone, self.feed, inputs), self.head(inputs)

    # ---- steps ------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Start the epoch's sums."""
        self._running.begin(self.device)
        self._window = Window()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch; nothing here waits for the device."""
        images, targets = batch
        boundary = self.passage.boundary
        outputs = (self.learn(images) if boundary is None else self.head(boundary.leave(images))).float()
        loss: Tensor = self.loss(outputs, targets)
        with torch.no_grad():
            self._running.add(loss, self.task.objective.running_sums(outputs, targets), len(targets))
        return self._window.weigh(loss, len(targets))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradients of accumulated batches those of one large batch, before they are clipped."""
        self.settle_gradients(self.trainer.accumulate_grad_batches)

    def settle_gradients(self, accumulate: int) -> None:
        """Do so outside a Trainer, after so many backward passes or fewer, each of a loss divided by `accumulate`."""
        self._window.settle(self.parameters(), accumulate)

    def train_sums(self) -> Tensor:
        """Return sums over the running epoch's pictures, ``(R + 2,) float32``: loss, R running figures, pictures."""
        return self._running.sums

    def running_figures(self, sums: Tensor) -> dict[str, float]:
        """Return the means that `train_sums` stand for, by name: ``loss`` and the task's running figures."""
        return {name: float(mean) for name, mean in self._running.means(sums.double().cpu()).items()}

    def on_train_epoch_end(self) -> None:
        """Log ``train_loss`` and the task's running figures, such as ``train_acc``."""
        if self._has_own("training_step"):
            return
        sums = self.trainer.strategy.reduce(self._running.sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        figures = {f"train_{name}": mean for name, mean in self._running.means(sums).items()}
        self.log_dict(figures, logger=None if self.to_loggers else False)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Update ``val_loss``, the plain loss, and the figures that are watched; return ``outputs``, for callbacks."""
        return {"outputs": self._update(self.val_metrics, batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        if not self._has_own("validation_step"):
            self._log(self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update ``test_loss`` and the others, as on `val`."""
        self._update(self.test_metrics, batch)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        if not self._has_own("test_step"):
            self._log(self.test_metrics)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """Return predictions, not calibrated; of classification, probabilities ``(B, C)``."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        predictions: Tensor = self.task.output.activate(self(images).float())
        return predictions

    def _has_own(self, step: str) -> bool:
        """Whether a subclass has this step of its own, and logs for itself: then there is nothing to log here."""
        return getattr(type(self), step) is not getattr(TransferModule, step)

    def _update(self, metrics: MetricCollection, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        outputs: Tensor = self(images).float()
        predictions = self.task.output.activate(outputs)
        for name, metric in metrics.items(keep_base=True):
            if name == "loss":  # one value per picture: torchmetrics 1.9 drops `weight` when it need not look for NaN
                metric.update(self.task.objective.item_losses(outputs, targets))
            else:
                metric.update(predictions, targets)
        return outputs

    def _log(self, metrics: MetricCollection) -> None:
        self.log_dict(metrics.compute(), logger=None if self.to_loggers else False)
        metrics.reset()

    # ---- optimizer and checkpoints ----------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer over every parameter, frozen or not."""
        cut = cut_groups(self, layout_of(self), self.lr_cuts)
        groups = param_groups(cut, weight_decay=self.weight_decay)
        return build_optimizer(groups=groups, **self.optimizer_options)  # type: ignore[arg-type]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, in bf16 too, where Lightning refuses it for fused optimizers.

        In fp16 a fused optimizer takes the loss scale off within its step, so there is nothing yet to clip.
        """
        if gradient_clip_val is not None and self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip(self.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the running epoch's sums, so that a resume in mid-epoch reports the same loss, and the data config."""
        checkpoint["transferkit_data_config"] = self.data_config.to_dict()
        checkpoint["transferkit_train_sums"] = self._running.sums.detach().cpu().clone()
        checkpoint["transferkit_lr_cuts"] = list(map(str, self.lr_cuts))
        if "hyper_parameters" in checkpoint and self.adapter is not None:
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "adapter": self.adapter.to_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums and the data config; refuse a checkpoint of another model."""
        if "transferkit_data_config" in checkpoint:
            self.backbone.data_config = DataConfig.from_dict(checkpoint["transferkit_data_config"])
        if "transferkit_train_sums" in checkpoint:
            self._running.sums = checkpoint["transferkit_train_sums"].to(self.device)
        self.lr_cuts = tuple(map(parse_selector, checkpoint.get("transferkit_lr_cuts", ())))
        for state in checkpoint.get("optimizer_states", ()):
            check_optimizer_state(self.configure_optimizers(), state)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path | IO[bytes], map_location: Any = None, **options: Any
    ) -> Self:
        """Rebuild a module from a checkpoint that `save_hyperparameters` covers (heads given by name).

        Raises:
            CheckpointError: The path is a URL. Lightning would unpickle code from it.
        """
        if "://" in str(checkpoint_path):
            raise CheckpointError(
                f"refusing to load a checkpoint from the network: {checkpoint_path} - fetch the file first"
            )
        options["weights_only"] = True
        return super().load_from_checkpoint(checkpoint_path, map_location=map_location, **options)


def _check(task: Task, spec: TargetSpec, num_classes: int, label_smoothing: float, lr: float) -> None:
    problems = task.width_problems(spec, num_classes)
    if not 0.0 <= label_smoothing < 1.0:
        problems.append(f"label_smoothing is {label_smoothing}, expected a number in [0, 1)")
    if not (math.isfinite(lr) and lr > 0):
        problems.append(f"lr is {lr}, expected a finite number above 0")
    if problems:
        raise ConfigError(gather(problems))
