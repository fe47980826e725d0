"""Small trainings with the parts of `finetune` but without its command, for tests that look into single steps."""

import signal

import lightning as L

from transferkit.data.batches.datamodule import ImageData
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.loop.checkpoints import AtomicCheckpointIO
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.keeper import RunKeeper
from transferkit.training.loop.phase_schedule import PhaseSchedule

STEPS = 6
"""An epoch: 24 training pictures of the fixture `folder`, 4 a batch."""


def make_data(folder):
    config = create_backbone("test_resnet", weights="random", image_size=32).data_config
    return ImageData(folder, batch_size=4, augment="standard", seed=0, data_config=config)


def make_module(seed=0, **options):
    L.seed_everything(seed, verbose=False)
    return TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3, **options)


class StopAt(L.Callback):
    """Raises the flag during an optimizer step, counted from 1, as a signal handler would."""

    def __init__(self, flag, step):
        self.flag, self.step = flag, step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            self.flag.received = signal.SIGTERM


def train(
    run, data, phases, *callbacks, module=None, checkpoint=None, stop_at=None, figures=None, solved=False, **options
):
    """Train as `finetune` does; the callbacks come after the keeper. Returns the module and the keeper.

    A callback that needs the schedule is given as a function of it.
    """
    run.mkdir(exist_ok=True)
    flag = SignalFlag()
    schedule = PhaseSchedule(phases, solved=solved)
    keeper = RunKeeper(run, schedule, monitor="val_loss", patience=None, flag=flag)
    if figures is not None:
        keeper.begin_with("probe", figures)
    module = make_module() if module is None else module
    made = [callback if isinstance(callback, L.Callback) else callback(schedule) for callback in callbacks]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, callbacks=[schedule, keeper, *made, StopAt(flag, stop_at)],
        plugins=[AtomicCheckpointIO()], default_root_dir=run, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module, keeper
