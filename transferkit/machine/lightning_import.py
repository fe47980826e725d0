"""Lightning and torchmetrics, and the parts of them that are used: imported here and nowhere else.

Lightning loads torchmetrics, and that, where they are installed, all of transformers for scores of texts and
scipy.signal for one of speech (torchmetrics 1.9). That takes seconds, for something that no verb asks for.
"""

from __future__ import annotations

import contextlib

from transferkit.machine.later import later

__all__ = [
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "ClusterEnvironment",
    "DDPStrategy",
    "DummyLogger",
    "L",
    "LayerSync",
    "LearningRateMonitor",
    "LightningEnvironment",
    "Logger",
    "MLFlowLogger",
    "MeanMetric",
    "Metric",
    "MetricCollection",
    "MisconfigurationException",
    "MulticlassAccuracy",
    "MulticlassCalibrationError",
    "MulticlassF1Score",
    "PossibleUserWarning",
    "SLURMEnvironment",
    "Strategy",
    "TensorBoardLogger",
    "TorchCheckpointIO",
    "TorchElasticEnvironment",
    "TrainerFn",
    "WandbLogger",
    "_SubprocessScriptLauncher",
    "dim_zero_cat",
]

# A version that needs the real ones at once gets them further down.
with later("scipy.signal", "transformers"), contextlib.suppress(ImportError):
    import torchmetrics  # noqa: F401

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat
