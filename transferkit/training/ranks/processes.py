"""Running a job in several processes: started here, as Lightning starts them, or by torchrun or SLURM before."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.machine.device import choose_accelerator
from transferkit.machine.lightning_import import (
    ClusterEnvironment,
    L,
    MisconfigurationException,
    _SubprocessScriptLauncher,
)
from transferkit.options.training import FinetuneConfig
from transferkit.training.ranks.connecting import connected, place_of_torchrun
from transferkit.training.ranks.parallel import ALONE, Place
from transferkit.training.ranks.strategies import make_environment, make_strategy, quiet_lightning

__all__ = ["in_processes", "started_as", "warned_once"]

PARENT = "TRANSFERKIT_PARENT"
"""Names the process that started this one, in the environment."""

GRACE_S = 15.0
"""How long a process may take to notice that another one is gone, or to end by itself."""

LOOK_S = 0.2

T = TypeVar("T")


def in_processes(config: FinetuneConfig, job: Callable[[FinetuneConfig], T]) -> T:
    """Call a job in each of the processes that a configuration asks for, connected; in this one, where one is enough.

    Under torchrun and SLURM the processes are there. Elsewhere Lightning's launcher starts them: each runs this
    process's command again, with ``LOCAL_RANK`` in its environment, and comes here by itself. That is done before
    anything else and not, as Lightning would, when training starts, so that what comes before is one job as well.

    Args:
        config: With `devices`, `num_nodes`, `strategy` and `accelerator`.
        job: Called with the configuration as this process is to follow it: quiet, unless it is the first.

    Raises:
        ConfigError: The processes cannot be had, or are not those that torchrun started.
        TrainingError: A process was lost.
        PeerError: Another process failed.
    """
    config = _as_torchrun_has_it(config)
    if config.devices * config.num_nodes == 1:
        return job(config)
    accelerator = choose_accelerator(config.accelerator, config.devices)
    environment = make_environment(config.devices * config.num_nodes)
    with quiet_lightning():
        trainer = _trainer(config, accelerator, environment)
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        raise ConfigError(f"--strategy {config.strategy} cannot run {config.devices} device(s) here - pass ddp")
    _require_script(config)

    def run() -> T:
        children = list(launcher.procs)
        # Lightning's watch over them, which finds none then, would kill this process within five seconds of the end
        # of one of them: before it has said why, or saved.
        launcher.procs.clear()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        place = Place(trainer.global_rank, trainer.world_size, trainer.local_rank, config.devices)
        with _watch(children), warned_once(place.rank), connected(place, "nccl" if accelerator == "gpu" else "gloo"):
            return job(dataclasses.replace(config, quiet=config.quiet or place.rank > 0))

    if not environment.creates_processes_externally:
        os.environ[PARENT] = str(os.getpid())
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the children: a lost connection is one line
    return launcher.launch(run, trainer=trainer)  # type: ignore[no-any-return]


def _require_script(config: FinetuneConfig) -> None:
    """Refuse to start processes where this one's command cannot be run again: a notebook, ``python -c``, a pipe."""
    if place_of_torchrun() != ALONE or int(os.environ.get(PARENT, "0")) == os.getppid():
        return
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is None and not Path(getattr(main, "__file__", None) or "").is_file():
        raise ConfigError(
            f"{config.devices * config.num_nodes} processes run this one's command again, and there is none to run (a "
            "notebook, python -c, or a pipe) - put it into a script, or use the command line: transferkit finetune "
            f"--devices {config.devices}"
        )


def _as_torchrun_has_it(config: FinetuneConfig) -> FinetuneConfig:
    place = place_of_torchrun()
    if place == ALONE:
        return config
    machines = place.world // place.local_world
    options, there = (config.devices, config.num_nodes), (place.local_world, machines)
    if options not in ((1, 1), (there[0], 1), there):
        raise ConfigError(
            f"--devices {options[0]} --num-nodes {options[1]}, but torchrun started {there[0]} process(es) on "
            f"{there[1]} machine(s) - leave both flags out"
        )
    return dataclasses.replace(config, devices=there[0], num_nodes=there[1])


def _trainer(config: FinetuneConfig, accelerator: str, environment: ClusterEnvironment) -> L.Trainer:
    """Return a Trainer that only says who this process is and how the others are started."""
    try:
        environment.validate_settings(num_devices=config.devices, num_nodes=config.num_nodes)
        return L.Trainer(
            accelerator=accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=make_strategy(config.strategy, config.devices * config.num_nodes),
            plugins=[environment],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, ImportError) as error:
        raise ConfigError(
            f"--strategy {config.strategy} with --accelerator {accelerator} --devices {config.devices} --num-nodes "
            f"{config.num_nodes} is not possible here: {' '.join(str(error).split())}"
        ) from error


def started_as() -> int:
    """Return the rank of this process as far as its start tells: torchrun's, or that of one that we started."""
    if int(os.environ.get(PARENT, "0")) == os.getppid():
        return int(os.environ.get("LOCAL_RANK", "0"))
    return place_of_torchrun().rank


@contextlib.contextmanager
def warned_once(rank: int) -> Iterator[None]:
    """Leave warnings that the first process gives as well to that one."""
    with warnings.catch_warnings():
        if rank:
            warnings.simplefilter("ignore", TransferkitWarning)
        yield


# ---- watching over each other -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _watch(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """End this process soon after its children or its parent, also where it does not notice: on a GPU, or computing.

    After a failure the children are ended; after success they are left to end by themselves, at the latest with us.
    """
    over = threading.Event()
    parent = int(os.environ.get(PARENT, "0"))
    started = not children and parent == os.getppid()
    if children or started:
        threading.Thread(target=_look, args=(over, children, parent), name="watch", daemon=True).start()
    try:
        yield
    except BaseException:
        over.set()
        _end(children)
        if children:
            for name in ("LOCAL_RANK", PARENT):  # so that a further call starts processes of its own
                os.environ.pop(name, None)
        raise
    over.set()
    if children:
        atexit.register(_end, children, GRACE_S)


def _look(over: threading.Event, children: Sequence[subprocess.Popen[bytes]], parent: int) -> None:
    while not over.wait(LOOK_S):
        gone = [child for child in children if child.poll() not in (None, 0)]
        if (gone if children else os.getppid() != parent) and not over.wait(GRACE_S):
            print(f"transferkit: error[training]: {_reason(gone)}", file=sys.stderr, flush=True)
            for child in children:
                child.kill()
            os._exit(next((child.returncode for child in gone if child.returncode > 0), 5))


def _reason(gone: Sequence[subprocess.Popen[bytes]]) -> str:
    if not gone:
        return "the process that started this one is gone"
    code = gone[0].returncode
    how = f"ended with status {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
    return f"another process of the run {how} - go on with --resume"


def _end(children: Sequence[subprocess.Popen[bytes]], patience: float = GRACE_S / 3) -> None:
    """Let children end: by themselves, then by SIGTERM, then by SIGKILL."""
    for ask in (lambda child: None, subprocess.Popen.terminate, subprocess.Popen.kill):
        until = time.monotonic() + patience
        for child in children:
            if child.poll() is None:
                ask(child)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
