"""Snapshots: where cycles end, what is in them, a resume that writes the same, the mean of their probabilities."""

from functools import partial

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from small_runs import STEPS, make_data, make_module, train

from transferkit.core.errors import CheckpointError, Interrupted
from transferkit.runs.measure import network_outputs
from transferkit.training.craft.snapshots import (
    Snapshots,
    ensemble,
    load_weights,
    read_weights,
    snapshot_paths,
    weights_of,
    write_weights,
)
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.phases import Phase
from transferkit.training.schedules.schedules import SGDR, Constant

# Epoch:   0      | 1  2  3  4
# Cycle:   none   | 1  2---  3 (cut off)
# Saved:          | 1     2
PHASES = [
    Phase("probe", epochs=1, train="head", lr=1e-2, schedule=Constant()),
    Phase("all", epochs=4, lr=1e-2, schedule=SGDR(cycle_epochs=1, cycle_mult=2)),
]
ENDS = (1, 3)


class Epochs(L.Callback):
    """Keeps backbone and head at the end of every epoch."""

    def __init__(self):
        self.states = {}

    def on_train_epoch_end(self, trainer, module):
        state = module.state_dict()
        self.states[trainer.current_epoch] = {name: tensor.clone() for name, tensor in state.items()}


def fit(run, data, *callbacks, failing=False, **options):
    """Train; `failing` ends the process before the checkpoint of the first snapshot's epoch."""
    module = make_module()
    if failing:
        module.on_train_epoch_end = lambda: killed(module.trainer)
    keep = partial(Snapshots, run)
    return train(run, data, PHASES, keep, *callbacks, module=module, **options)[0]


def killed(trainer):
    """Between the snapshot and the checkpoint of its epoch."""
    trainer.lightning_module.log_dict({"train_loss": 0.0})
    if trainer.current_epoch == ENDS[0]:
        raise KeyError("killed")


def files(run):
    return {path.name: path.read_bytes() for path in (run / "checkpoints").glob("snapshot*")}


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    run, epochs = tmp_path_factory.mktemp("snapshots") / "run", Epochs()
    module = fit(run, make_data(folder), epochs)
    return run, epochs, module


def test_one_at_the_end_of_each_whole_cycle(reference):
    run, epochs, _ = reference
    assert sorted(files(run)) == ["snapshot-1.safetensors", "snapshot-2.safetensors"]
    for number, epoch in enumerate(ENDS, 1):
        saved = load_file(run / "checkpoints" / f"snapshot-{number}.safetensors")
        expected = {name: tensor for name, tensor in epochs.states[epoch].items() if name[:5] in ("backb", "head.")}
        assert saved.keys() == expected.keys()
        assert [name for name in saved if not saved[name].equal(expected[name])] == []
    name = "head.linear.weight"
    assert not epochs.states[1][name].equal(epochs.states[3][name])


def test_an_epoch_that_is_repeated_writes_the_same_again(reference, folder, tmp_path):  # fault 52
    run = tmp_path / "run"
    with pytest.raises(KeyError, match="killed"):
        fit(run, make_data(folder), failing=True)
    assert sorted(files(run)) == ["snapshot-1.safetensors"]
    fit(run, make_data(folder), checkpoint=run / "checkpoints" / "last.ckpt")
    assert files(run) == files(reference[0])


def test_a_resume_without_its_snapshots_is_refused(reference, folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(run, make_data(folder), stop_at=2 * STEPS + 1)
    (run / "checkpoints" / "snapshot-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"snapshot-1\.safetensors: missing - run `finetune` again"):
        fit(run, make_data(folder), checkpoint=run / "checkpoints" / "last.ckpt")


def test_other_ranks_count_but_do_not_write(tmp_path):
    class Other:
        is_global_zero, current_epoch = False, 1

    schedule = PhaseSchedule(PHASES)
    module = make_module()
    schedule._plan = type("Planned", (), {
        "phases": PHASES, "phase_at": lambda self, epoch: 1, "first_epoch": lambda self, index: 1
    })()  # fmt: skip
    snapshots = Snapshots(tmp_path, schedule)
    snapshots.on_train_epoch_end(Other, module)
    assert snapshots.state_dict() == {"written": ["snapshot-1.safetensors"]}
    assert list(tmp_path.iterdir()) == []
    Other.is_global_zero, snapshots.written = True, []
    snapshots.on_train_epoch_end(Other, module)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["snapshot-1.safetensors"]


# ---- the ensemble -----------------------------------------------------------------------------------------------


def test_the_mean_of_probabilities(reference, folder):
    run, epochs, module = reference
    loader = make_data(folder).evaluation_loader("val")
    own = weights_of(module)
    probs, targets, each = ensemble(module, run, loader)
    assert (each.shape, probs.shape, len(targets)) == ((2, 12, 3), (12, 3), 12)
    for number, epoch in enumerate(ENDS):
        other = make_module()
        other.load_state_dict(epochs.states[epoch])
        alone, labels = network_outputs(other, loader)
        assert each[number].equal(alone)
        assert targets.equal(labels)
    assert not each[0].allclose(each[1], atol=1e-3)
    torch.testing.assert_close(probs, (each[0].softmax(dim=1) + each[1].softmax(dim=1)) / 2)
    # the module is what it was
    assert all(tensor.equal(own[name]) for name, tensor in weights_of(module).items())
    assert not own["head.linear.weight"].equal(epochs.states[3]["head.linear.weight"])


def test_a_failure_gives_the_weights_back(reference, folder):
    run, _, module = reference
    own = weights_of(module)

    def broken():
        yield from make_data(folder).evaluation_loader("val")
        raise RuntimeError("cable pulled")

    with pytest.raises(RuntimeError, match="cable pulled"):
        ensemble(module, run, broken())
    assert all(tensor.equal(own[name]) for name, tensor in weights_of(module).items())


def test_snapshots_that_are_missing(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no snapshots - run `finetune` with --snapshots"):
        snapshot_paths(tmp_path)
    for name in ("snapshot-1", "snapshot-2", "snapshot-10", "snapshot-x", "other"):
        (tmp_path / "checkpoints" / f"{name}.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"snapshot-3\.safetensors is missing between the others"):
        snapshot_paths(tmp_path)
    for number in range(3, 10):
        (tmp_path / "checkpoints" / f"snapshot-{number}.safetensors").touch()
    assert [path.stem for path in snapshot_paths(tmp_path)] == [f"snapshot-{number}" for number in range(1, 11)]


# ---- the check and the files ------------------------------------------------------------------------------------


def test_weights_come_back_as_they_were(tmp_path):
    module = make_module().to(memory_format=torch.channels_last)
    weights = weights_of(module)
    path = tmp_path / "checkpoints" / "w.safetensors"
    write_weights(path, weights)
    assert {name.partition(".")[0] for name in weights} == {"backbone", "head"}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    assert bool(weights["head.linear.weight"].any())  # a copy
    load_weights(module, read_weights(path), source="w")
    assert all(tensor.equal(weights[name]) for name, tensor in weights_of(module).items())
    written = path.read_bytes()
    write_weights(path, weights)
    assert path.read_bytes() == written


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"head.w": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: does not match its sha256 - run `finetune` again"):
        read_weights(path)
    path.write_bytes(data[:500])
    with pytest.raises(CheckpointError, match=r"w\.safetensors: damaged \("):
        read_weights(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"w\.safetensors: missing"):
        read_weights(path)


def test_weights_of_another_model_are_refused():
    module = make_module()
    weights = weights_of(module)
    weights["head.linear.weight"] = torch.zeros(5, 7)
    with pytest.raises(CheckpointError, match="w: does not fit the model .*size mismatch for head.linear.weight"):
        load_weights(module, weights, source="w")
    del weights["head.linear.weight"]
    with pytest.raises(CheckpointError, match="Missing key"):
        load_weights(module, weights, source="w")
