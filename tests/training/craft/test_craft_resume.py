"""What callbacks of training craft remember survives a stop anywhere: a resumed run equals an undisturbed one."""

from functools import partial

import pytest
import torch
from small_runs import STEPS, make_data, make_module, train

from transferkit.core.errors import Interrupted
from transferkit.training.craft.ema import EMA, KEY
from transferkit.training.craft.interpolation import KeepStart, load_start
from transferkit.training.craft.l2sp import L2SP
from transferkit.training.craft.snapshots import Snapshots, read_weights
from transferkit.training.loop.checkpoints import load_checkpoint
from transferkit.training.plan.phases import Phase
from transferkit.training.schedules.schedules import SGDR, Constant

PHASES = [
    Phase("probe", epochs=1, train="head", lr=1e-2, schedule=Constant()),
    Phase("top", epochs=1, train=("head", "layer4"), lr=1e-2, schedule=Constant()),
    Phase("all", epochs=2, lr=1e-2, schedule=SGDR(cycle_epochs=1)),
]


def fit(run, folder, **options):
    callbacks = (L2SP(0.3), EMA(0.5), partial(Snapshots, run), partial(KeepStart, run))
    recorder = train(run, make_data(folder), PHASES, *callbacks, **options)[1]
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in recorder.history.rows]


def tensors_of(run):
    """Everything that the run holds, by file or part and name."""
    last, best = (load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    parts = {
        "last": last["state_dict"], "average's weights": last[KEY]["raw"], "best": best["state_dict"],
        "pull": last["callbacks"]["L2SP"]["starts"], "start": load_start(run),
        "updates": {"": torch.tensor(last[KEY]["updates"])},
    }  # fmt: skip
    parts |= {path.stem: read_weights(path) for path in (run / "checkpoints").glob("snapshot-*")}
    return {(part, name): tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def differing(run, reference):
    ours, theirs = tensors_of(run), tensors_of(reference)
    assert ours.keys() == theirs.keys()
    return {part for part, name in ours if not ours[part, name].equal(theirs[part, name])}


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return run, fit(run, folder)


def test_an_undisturbed_run_holds_it_all(undisturbed):
    tensors = tensors_of(undisturbed[0])
    assert {part for part, _ in tensors} == {
        "last", "average's weights", "best", "pull", "start", "updates", "snapshot-1", "snapshot-2",
    }  # fmt: skip
    fresh = {f"{name}": parameter for name, parameter in make_module().named_parameters() if name[:4] == "back"}
    assert all(tensors["pull", name].equal(parameter) for name, parameter in fresh.items())
    assert {name for part, name in tensors if part == "pull"} == fresh.keys()


@pytest.mark.parametrize("step", [3, STEPS, STEPS + 1, 2 * STEPS, 3 * STEPS - 1, 3 * STEPS, 3 * STEPS + 2])
def test_a_resume_equals_an_undisturbed_run(undisturbed, folder, tmp_path, step):  # fault 52
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    with pytest.raises(Interrupted):
        fit(run, folder, stop_at=step)
    start = checkpoints / "start.safetensors"
    assert start.exists() == (step > STEPS)
    assert len(list(checkpoints.glob("snapshot-*"))) == (step >= 3 * STEPS)
    before = start.stat().st_ino if start.exists() else None
    assert fit(run, folder, checkpoint=checkpoints / "last.ckpt") == undisturbed[1]
    assert differing(run, undisturbed[0]) == set()
    assert before in (None, start.stat().st_ino)  # never written again


@pytest.mark.parametrize(("forgetful", "part"), [(L2SP, "pull"), (EMA, "updates")])
def test_the_comparison_can_fail(undisturbed, folder, tmp_path, monkeypatch, forgetful, part):
    hook = "load_state_dict" if forgetful is L2SP else "on_load_checkpoint"
    monkeypatch.setattr(forgetful, hook, lambda *arguments: None)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(run, folder, stop_at=2 * STEPS + 2)
    fit(run, folder, checkpoint=run / "checkpoints" / "last.ckpt")
    assert part in differing(run, undisturbed[0])
