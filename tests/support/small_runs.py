"""Small trainings with the parts of `finetune` but without its command, for tests that look into single steps."""

import os
import signal

import lightning as L

from transferkit.data.batches.datamodule import ImageData
from transferkit.features.linear.softening import START_STD
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.craft.ema import EMA
from transferkit.training.head.solve import SolvedProbe, soften_head
from transferkit.training.loop.checkpoints import AtomicCheckpointIO
from transferkit.training.loop.early_stop import ByFigure, Selection
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.loop.trainer import in_order
from transferkit.training.ranks.parallel import statistics

STEPS = 6
"""An epoch: 24 training pictures of the fixture `folder`, 4 a batch."""


def make_data(folder):
    config = create_backbone("test_resnet", weights="random", image_size=32).data_config
    return ImageData(folder, batch_size=4, augment="standard", seed=0, data_config=config)


def make_module(seed=0, **options):
    L.seed_everything(seed, verbose=False)
    return TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3, **options)


def make_trainer(root, *callbacks, **options):
    """A Trainer on the CPU that shows and saves nothing by itself."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"accelerator": "cpu", "max_epochs": -1, "num_sanity_val_steps": 0, **silent, **options}
    return L.Trainer(callbacks=list(callbacks), default_root_dir=root, **options)


class SignalAt(L.Callback):
    """Sends this process a signal during an optimizer step, counted from 1; `finetune` catches it."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def solve_and_soften(module, logit_std):
    """Take the head of a module for one that was solved, with logits of this deviation, and soften it for training."""
    head = {name: tensor.clone() for name, tensor in module.head.state_dict().items()}
    solved = SolvedProbe(
        {"val_acc": 0.9, "val_loss": 0.0, "time_s": 0.0, "logit_std": logit_std},
        head,
        {name: tensor * min(1.0, START_STD / logit_std) for name, tensor in head.items()},
    )
    soften_head(module.head, solved)
    return solved


def train(run, data, phases, *callbacks, module=None, checkpoint=None, stop_at=None, solved=None, **options):
    """Train as `finetune` does. Returns the module and the recorder.

    A callback that needs the schedule is given as a function of it. `solved` is of a first phase that was solved.
    """
    run.mkdir(exist_ok=True)
    flag = SignalFlag()
    schedule = PhaseSchedule(phases, solved=solved is not None)
    module = make_module() if module is None else module
    made = [callback if isinstance(callback, L.Callback) else callback(schedule) for callback in callbacks]
    own = [statistics, *(callback.statistics for callback in made if isinstance(callback, EMA))]
    selection = Selection("val_loss", ByFigure(higher_is_better=False), patience=None)
    recorder = RunRecorder(run, module, schedule, selection, flag, own)
    if solved is not None:
        recorder.begin_with("probe", solved.figures, solved.head)
    callbacks = in_order(schedule, made, [SignalAt(stop_at)], recorder)
    trainer = make_trainer(run, *callbacks, plugins=[AtomicCheckpointIO()], enable_checkpointing=True, **options)
    with flag.installed():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module, recorder
