"""A run that loses a decoding process ends with status 74, keeps what it has, and can be gone on with."""

import os
import signal
import time

import pytest
from lightning.pytorch.callbacks import Callback

from transferkit.core.errors import StorageError, TransferkitWarning
from transferkit.runs.directory import is_complete
from transferkit.training.finetune import finetune


class KillsAWorker(Callback):
    """Kills a worker in the second epoch, while this process is busy with something else than waiting for it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            os.kill(trainer.train_dataloader._iterator._workers[0].pid, signal.SIGKILL)
            time.sleep(30)  # ended by torch's signal handler


def test_the_run_ends_keeps_its_checkpoint_and_goes_on(quick, tmp_path, two_cores, decoding_processes):  # fault 45
    out = tmp_path / "run"
    quick |= {"phases": "finetune", "workers": 1, "out": out}
    message = r"lost \(DataLoader worker \(pid \d+\) is killed by signal: Killed\), .* reduce --workers or raise shm"
    with pytest.raises(StorageError, match=message) as caught:
        finetune(callbacks=[KillsAWorker()], **quick)
    assert caught.value.exit_status == 74
    assert (out / "checkpoints" / "last.ckpt").exists()
    assert not is_complete(out)
    with pytest.warns(TransferkitWarning, match="resuming with workers 0 instead of 1"):
        finetune(out=out, resume=True, workers=0, quiet=True)
    assert is_complete(out)
