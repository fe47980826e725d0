"""The callbacks of a run: in the order that is written down, whatever Lightning does with them."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import make_module, make_trainer

from transferkit.training.finetune import finetune
from transferkit.training.loop.early_stop import ByFigure, Selection
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.loop.trainer import in_order
from transferkit.training.plan.phases import Phase


class Order(L.Callback):
    """Reads the Trainer's own list."""

    def on_fit_start(self, trainer, pl_module):
        self.names = [type(callback).__name__ for callback in trainer.callbacks]


def test_callbacks_run_in_the_order_that_is_written_down(quick, tmp_path):
    order, theirs = Order(), ModelCheckpoint(tmp_path / "theirs")
    schedule = {"name": "sgdr", "cycle_epochs": 1}
    finetune(
        **quick, schedule=schedule, snapshots=True, ema=0.9, l2_sp=0.01, interpolate=True, out=tmp_path / "run",
        callbacks=[theirs, order],
    )  # fmt: skip
    assert order.names == [
        "PhaseSchedule", "FiniteLoss", "L2SP", "EMA", "Snapshots", "KeepStart", "CachedActivations", "Order",
        "RunRecorder", "ModelCheckpoint",
    ]  # fmt: skip


@pytest.fixture
def recorder(tmp_path):
    selection = Selection("val_loss", ByFigure(higher_is_better=False), patience=None)
    return RunRecorder(tmp_path, make_module(), PhaseSchedule([Phase("all", 1)]), selection, SignalFlag())


def test_lightning_leaves_that_order_as_it_is(recorder, tmp_path):
    theirs = [ModelCheckpoint(tmp_path), Order(), ModelCheckpoint(tmp_path, monitor="val_loss"), Order()]
    written = in_order(recorder.schedule, [Order()], theirs, recorder)
    assert make_trainer(tmp_path, *written, enable_checkpointing=True).callbacks == written
    other = [recorder, *(callback for callback in written if callback is not recorder)]
    assert make_trainer(tmp_path, *other, enable_checkpointing=True).callbacks != other  # so the comparison can fail
