"""Several ranks on this machine for the tests: forked from one process that has loaded everything, over loopback."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest

MODULES = [
    "transferkit.training.finetune",
    "transferkit.results.predict.predictor",
    "sklearn.linear_model",
    "albumentations",
]


def free_port():
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun_environment(rank, world, port):
    """Return what torchrun tells its processes, so that none is started besides."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


class Ranks:
    """Processes that run one function each; `results` waits for them."""

    def __init__(self, world, directory, job, *args, env=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(MODULES)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"
        port = free_port()
        self.files = [Path(directory) / f"rank-{time.monotonic_ns()}-{rank}" for rank in range(world)]
        self.processes = []
        for rank, file in enumerate(self.files):
            place = torchrun_environment(rank, world, port) if world > 1 else {}
            place |= {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(directory)), **(env or {})}
            self.processes.append(context.Process(target=_work, args=(place, file, job, args)))
            self.processes[-1].start()

    def results(self, timeout=120.0):
        """Return each rank's exit code and what its function returned, or the error it raised."""
        until = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        hung = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        if hung:
            pytest.fail(f"rank {hung} did not end within {timeout} s")
        values = [pickle.loads(file.read_bytes()) if file.exists() else None for file in self.files]
        return [(process.exitcode, value) for process, value in zip(self.processes, values, strict=True)]


def run_ranks(world, directory, job, *args, env=None, timeout=120.0):
    """Run a function in every rank; return what it returned there. Fails unless all of them succeed."""
    results = Ranks(world, directory, job, *args, env=env).results(timeout)
    for rank, (code, value) in enumerate(results):
        if code != 0:
            pytest.fail(f"rank {rank} ended with {code}: {value}")
    return [value for _, value in results]


def _work(place, file, job, args):
    os.environ.update(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from lightning.pytorch.utilities.warnings import PossibleUserWarning

    from transferkit.core.errors import TransferkitError

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
    warnings.simplefilter("ignore", PossibleUserWarning)
    warnings.filterwarnings("ignore", "resuming with devices")
    warnings.filterwarnings("ignore", ".*joblib will operate in serial mode", UserWarning)  # without shared memory
    code = 0
    try:
        value = job(*args)
    except SystemExit as error:
        value, code = "SystemExit", error.code
    except TransferkitError as error:
        value, code = (type(error).__name__, str(error)), error.exit_status
    except BaseException:
        value, code = ("bug", traceback.format_exc()), 1
    file.write_bytes(pickle.dumps(value))
    os._exit(code)  # as a killed process ends: no exit handler may be needed for the others to notice


# ---- what the ranks do ------------------------------------------------------------------------------------------


def finetune_watched(options, actions=(), slow_writes=0.0, writer_only=False):
    """Fine-tune; return weights, metrics and what happened on the way.

    Args:
        options: Of `finetune`.
        actions: ``(rank, epoch, batch, action)``: a signal for oneself, text to raise, a float to add to a weight.
        slow_writes: Seconds that every checkpoint takes longer.
        writer_only: Whether writing is an error in all ranks but the first.
    """
    import torch
    from lightning.pytorch.callbacks import Callback

    import transferkit.core.files
    from transferkit.models.digest import state_digest
    from transferkit.training.finetune import finetune
    from transferkit.training.loop.checkpoints import AtomicCheckpointIO

    class Spy(Callback):
        def __init__(self):
            self.ends, self.reduced, self.values, self.pictures, self.weights = [], [], [], [], {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.pictures.append(hashlib.sha256(batch[0].numpy().tobytes()).hexdigest()[:8])
            for rank, epoch, number, action in actions:
                if (rank, epoch, number) == (trainer.global_rank, trainer.current_epoch, batch_idx):
                    if isinstance(action, str):
                        raise RuntimeError(action)
                    if isinstance(action, float):
                        with torch.no_grad():
                            pl_module.head.linear.bias += action
                    else:
                        os.kill(os.getpid(), action)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 0 and trainer.world_size > 1:
                learning = sum(parameter.requires_grad for parameter in pl_module.parameters())
                logged = trainer.strategy.model._get_ddp_logging_data()
                self.reduced.append((logged["num_parameter_tensors"], learning))

        def on_train_epoch_end(self, trainer, pl_module):
            self.ends.append(state_digest(pl_module))

        def on_train_end(self, trainer, pl_module):
            self.weights = {name: tensor.clone().numpy() for name, tensor in pl_module.state_dict().items()}

    save, write = AtomicCheckpointIO.save_checkpoint, transferkit.core.files.write_atomically

    def save_slowly(self, *args, **kwargs):
        time.sleep(slow_writes)
        save(self, *args, **kwargs)

    def write_as_first(path, fill):
        assert int(os.environ["RANK"]) == 0, f"rank {os.environ['RANK']} writes {path}"
        write(path, fill)

    AtomicCheckpointIO.save_checkpoint = save_slowly
    if writer_only:
        for name, module in list(sys.modules.items()):
            if name.startswith("transferkit.") and getattr(module, "write_atomically", None) is write:
                module.write_atomically = write_as_first
    spy = Spy()
    run = finetune(callbacks=[spy], **options)
    return {
        "metrics": dict(run.metrics), "path": str(run.path), "ends": spy.ends, "reduced": spy.reduced,
        "pictures": spy.pictures, "weights": spy.weights,
    }  # fmt: skip


def command(words):
    """Run the command line; return its status and what it printed."""
    import contextlib
    import io

    from transferkit.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def predict_in_rounds(words, lines, size):
    """Run `predict` over a list on standard input, so many pictures of each process at a time."""
    import io

    import transferkit.results.predict.predict as verb

    verb.ROUND["cpu"] = size
    sys.stdin = io.StringIO("\n".join(lines))
    return command(words)


def connect_and(function, *args):
    """Call a function between connected ranks."""
    from transferkit.training.ranks.connecting import connected, place_of_torchrun

    with connected(place_of_torchrun()):
        return function(*args)


def averaged():
    """Average a few tensors that differ, and some that do not."""
    import torch

    from transferkit.training.ranks.parallel import average, rank

    torch.manual_seed(0)
    same, whole = torch.rand(1000), torch.tensor(7 + rank())
    mine, before = torch.tensor([float(rank()), 10.0]), same.clone()
    average([same, mine, whole])
    return torch.equal(same, before), mine.tolist(), whole.item()


def exchange():
    """Return what ranks tell each other."""
    from transferkit.training.ranks.parallel import agree, gather, is_writer, local_world, on_first, rank, world

    number = rank()
    return (
        on_first(os.getpid) == os.getpid(), gather(number), agree(number, -number), is_writer(), world(), local_world(),
        sorted(os.sched_getaffinity(0)),
    )  # fmt: skip


def figures_of_tables(deals):
    """Return figures of labels and of numbers for each deal: of every rank, batches of predictions and targets."""
    import torch

    from transferkit.models.answers.epoch import LabelFigure, NumberFigure
    from transferkit.models.answers.multilabel import MONITORS
    from transferkit.training.ranks.parallel import rank

    warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)  # of a rank without pictures
    metrics = [LabelFigure(name, 3) for name in MONITORS if name != "loss"]
    metrics += [NumberFigure(name, 3) for name in ("rmse", "mae", "r2", "spearman")]
    values = []
    for deal in deals:
        for metric in metrics:
            metric.reset()
            for predictions, targets in deal[rank()]:
                metric.update(torch.tensor(predictions), torch.tensor(targets))
        values.append([float(metric.compute()) for metric in metrics])
    return values


def fails_first():
    """Raise in the first rank only, while the others wait for it."""
    from transferkit.core.errors import DataError
    from transferkit.training.ranks.parallel import on_first

    def fail():
        raise DataError("no pictures")

    on_first(fail)


def fails_second():
    """Raise in the second rank only, while the others wait for it."""
    from transferkit.core.errors import BackboneError
    from transferkit.training.ranks.parallel import barrier, rank

    if rank() == 1:
        raise BackboneError("no weights")
    barrier()


def is_killed():
    """Lose the second rank."""
    from transferkit.training.ranks.parallel import barrier, rank

    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    barrier()


def validate(folders, batch_size):
    """Validate on each folder with a model that is the same everywhere; return the metrics."""
    import lightning as L
    import torch

    from transferkit.data.batches.datamodule import ImageData
    from transferkit.models.module import TransferModule

    warnings.simplefilter("ignore")  # classes without validation pictures
    results = []
    for folder in folders:
        torch.manual_seed(0)
        data = ImageData(folder, 32, batch_size=batch_size)
        module = TransferModule("test_resnet", data.num_classes, weights="random", image_size=32)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        trainer = L.Trainer(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
                            enable_progress_bar=False, enable_checkpointing=False)  # fmt: skip
        results.append(trainer.validate(module, data, verbose=False)[0])
    return results


def phases_in_a_plain_trainer(folder, unused):
    """Train two phases with Lightning's own DDP; return digests, and whether a wrapper of an earlier phase is left."""
    import gc
    import weakref

    import lightning as L
    import torch
    from torch import nn

    from transferkit.data.batches.datamodule import ImageData
    from transferkit.models.backbones.registry import create_backbone
    from transferkit.models.digest import state_digest
    from transferkit.models.module import TransferModule
    from transferkit.training.loop.phase_schedule import PhaseSchedule
    from transferkit.training.plan.phases import Phase
    from transferkit.training.ranks.strategies import PhasedDDP, unused_parameters

    class Head(nn.Module):
        def __init__(self, features, classes):
            super().__init__()
            self.used, self.spare = nn.Linear(features, classes), nn.Linear(features, classes)

        def forward(self, features):
            return self.used(features)

    class Watch(L.Callback):
        def __init__(self):
            self.wrappers, self.alive, self.ends, self.looks = [], [], [], []

        def on_train_epoch_start(self, trainer, pl_module):
            self.alive.append(sum(reference() is not None for reference in self.wrappers))
            self.wrappers.append(weakref.ref(trainer.strategy.model.reducer))
            self.looks.append(trainer.strategy.model.find_unused_parameters)

        def on_train_epoch_end(self, trainer, pl_module):
            self.ends.append(state_digest(pl_module))

    torch.manual_seed(0)
    gc.disable()  # a wrapper that only the collector frees would go on reducing until then
    data = ImageData(folder, 32, batch_size=4)
    backbone = create_backbone("test_vit", weights="random", image_size=32)
    head = Head(backbone.num_features, data.num_classes) if unused else "linear"
    module = TransferModule(backbone, data.num_classes, head)
    names = unused_parameters(module)
    phases = [Phase("probe", epochs=1, train="head", lr=1e-2), Phase("finetune", epochs=2, train="all", lr=1e-3)]
    watch = Watch()
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=PhasedDDP() if unused else "ddp", logger=False,
                        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
                        callbacks=[PhaseSchedule(phases), watch], num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(module, data)
    return {"ends": watch.ends, "alive": watch.alive, "looks": watch.looks, "unused": names}


def finetune_beside_hpc_checkpoint(options):
    """Fine-tune while a checkpoint of a batch system appears in the run directory."""
    from transferkit.training import finetune as story

    write_plan = story.write_plan

    def write_beside(run, plan):
        write_plan(run, plan)
        (run / "hpc_ckpt_1.ckpt").write_bytes(b"of another job")

    story.write_plan = write_beside
    return finetune_watched(options)


def loaded_by_finetune(options, names):
    """Fine-tune; return those of the modules that are loaded then."""
    from transferkit.training.finetune import finetune

    finetune(**options)
    return [name for name in names if name in sys.modules]
