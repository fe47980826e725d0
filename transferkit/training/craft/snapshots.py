"""Snapshot ensembles: the weights at the end of every SGDR cycle, and the mean of their probabilities."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from transferkit.core.errors import CheckpointError
from transferkit.core.files import atomic_write, storage_errors
from transferkit.core.text import one_line
from transferkit.data.batches.datamodule import ImageData
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.digest import tensor_digest
from transferkit.models.module import TransferModule
from transferkit.runs.measure import network_outputs
from transferkit.training.loop.phase_schedule import PhaseSchedule

__all__ = [
    "Snapshots",
    "ensemble",
    "load_weights",
    "measure_snapshots",
    "read_weights",
    "snapshot_paths",
    "weights_of",
    "write_weights",
]

DIGEST = "transferkit_sha256"
NAME = re.compile(r"snapshot-([1-9]\d*)\.safetensors")


# ---- weights as files -------------------------------------------------------------------------------------------


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of backbone and head on the CPU, by name in the module's state dict."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
        if name.startswith(("backbone.", "head."))
    }


def load_weights(module: TransferModule, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Put `weights_of` another moment into a module.

    Args:
        module: Of the same backbone and head.
        weights: Every tensor of both.
        source: What to call them in an error.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape.
    """
    try:
        nn.ModuleDict({"backbone": module.backbone, "head": module.head}).load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: does not fit the model ({one_line(error)}) - give the backbone and head it was trained with"
        ) from error


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors with their sha256, whole or not at all; equal tensors give equal bytes.

    Args:
        path: The target; its folder is made, but not the folder's parents: a run directory that vanished stays so.
        weights: From `weights_of`.

    Raises:
        StorageError: The disk is full or read-only.
    """
    with storage_errors("create", path.parent):
        path.parent.mkdir(exist_ok=True)
    # One entry only: safetensors keeps metadata in no particular order.
    atomic_write(path, save(dict(weights), metadata={DIGEST: tensor_digest(weights)}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `write_weights` wrote.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing - run `finetune` again with --overwrite")
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}) - run `finetune` again with --overwrite") from error
    if digest != tensor_digest(weights):
        raise CheckpointError(f"{path}: does not match its sha256 - run `finetune` again with --overwrite")
    return weights


# ---- snapshots --------------------------------------------------------------------------------------------------


class Snapshots(Callback):
    """Saves backbone and head at the end of each whole SGDR cycle: `checkpoints/snapshot-1.safetensors` and so on.

    There the learning rate is at its lowest and the weights have settled, before the restart drives them to another
    place (Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free", section 3). Cycles of every phase count; a
    cycle that the end of its phase cuts off does not. The weights are those that training goes on with, not their
    average where there is one.

    A snapshot is written before the checkpoint of its epoch, and an epoch that is repeated after a crash writes the
    same bytes again.

    Args:
        run: The run directory.
        schedule: Knows the phases; must come before this callback.
    """

    def __init__(self, run: Path, schedule: PhaseSchedule) -> None:
        self.run = run
        self.schedule = schedule
        self.written: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the snapshots so far."""
        return {"written": list(self.written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the list of the process that is being continued."""
        self.written = list(state_dict["written"])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin without any; a checkpoint is read after this."""
        if stage == "fit":
            self.written = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure that the snapshots of the process that is being continued are there and whole."""
        for name in self.written:
            read_weights(self.run / "checkpoints" / name)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the weights where a cycle ended."""
        plan = self.schedule.plan
        index = plan.phase_at(trainer.current_epoch)
        phase = plan.phases[index]
        if trainer.current_epoch - plan.first_epoch(index) not in phase.cycle_ends:
            return
        name = f"snapshot-{len(self.written) + 1}.safetensors"
        if trainer.is_global_zero:
            write_weights(self.run / "checkpoints" / name, weights_of(pl_module))
        self.written.append(name)


def snapshot_paths(run: Path) -> list[Path]:
    """Return the snapshots of a run, the earliest first.

    Raises:
        CheckpointError: There are none, or one between the others is missing.
    """
    numbers = sorted(
        int(match[1]) for path in (run / "checkpoints").glob("*") if (match := NAME.fullmatch(path.name)) is not None
    )
    if not numbers:
        raise CheckpointError(f"{run}: holds no snapshots - run `finetune` with --snapshots and the schedule sgdr")
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if missing:
        raise CheckpointError(
            f"{run}: snapshot-{missing[0]}.safetensors is missing between the others - run `finetune` again with "
            "--overwrite"
        )
    return [run / "checkpoints" / f"snapshot-{number}.safetensors" for number in numbers]


def ensemble(
    module: TransferModule, run: Path, loader: Iterable[tuple[Tensor, Tensor]], *, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the snapshots of a run say together: the mean of their predictions (Huang et al. 2017, section 3).

    Args:
        module: Of the run's backbone and head; it has its own weights again afterwards, in eval mode on `device`.
        run: The run directory.
        loader: Gives ``(B, H, W, 3) uint8`` pictures and targets, in the same order at every pass.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns:
        Mean predictions ``(N, width) float32``, targets ``(N, ...)``, and each snapshot's outputs ``(S, N, width)``.

    Raises:
        CheckpointError: There are no snapshots, or one is missing, damaged or of another model.
    """
    paths, own = snapshot_paths(run), weights_of(module)
    each: list[Tensor] = []
    try:
        for path in paths:
            load_weights(module, read_weights(path), source=str(path))
            outputs, targets = network_outputs(module, loader, device=device)
            each.append(outputs)
    finally:
        load_weights(module, own, source="the module's own weights")
    stacked = torch.stack(each)
    return module.task.output.activate(stacked).mean(dim=0), targets, stacked


def measure_snapshots(
    run: Path, module: TransferModule, data: ImageData, splits: Sequence[str], *, device: str, seed: int
) -> dict[str, Any]:
    """Return some figures of the snapshots on each split: of the mean of their predictions, and of each one alone.

    The product has all figures; here are the first that the task watches, with its interval, and the loss.

    Args:
        run: The run directory, which holds them.
        module: Like the one that was trained.
        data: The pictures.
        splits: To measure on.
        device: Where to compute.
        seed: Of the bootstrap.
    """
    task = module.task
    first = task.objective.watched[0]
    results: dict[str, Any] = {}
    for split in splits:
        predictions, targets, each = ensemble(module, run, data.evaluation_loader(split), device=device)
        values = task.scores.measure(predictions, targets, module.target_spec, seed=seed)
        results[split] = {key: values[key] for key in (first, f"{first}_ci", "loss", "ece", "n") if key in values}
        alone = [task.plain_figures((first,), outputs, targets)[first] for outputs in each]
        results[split][f"each_{first}"] = alone
    return results
