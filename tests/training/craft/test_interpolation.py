"""WiSE-FT: weights between two states, the choice on validation, the start that a run keeps."""

from dataclasses import fields
from functools import partial

import lightning as L
import pytest
import torch
from PIL import Image
from small_runs import STEPS, make_data, make_module, solve_and_soften, train

from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError, Interrupted
from transferkit.models.figures.classification import classification_metrics
from transferkit.models.task import Task
from transferkit.runs.measure import predictions_of
from transferkit.training.craft.interpolation import (
    Interpolation,
    KeepStart,
    choose_alpha,
    interpolate_states,
    load_start,
)
from transferkit.training.craft.snapshots import weights_of
from transferkit.training.plan.phases import Phase
from transferkit.training.schedules.schedules import Constant

PHASES = [
    Phase("probe", epochs=1, train="head", lr=1e-2, schedule=Constant()),
    Phase("all", epochs=2, lr=1e-3, schedule=Constant()),
]


def fit(run, data, *callbacks, phases=PHASES, **options):
    keep = partial(KeepStart, run)
    return train(run, data, phases, keep, *callbacks, **options)[0]


class AtBatch(L.Callback):
    """Keeps the weights that a step starts from, steps counted from 1."""

    def __init__(self, step):
        self.step, self.weights = step, None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            self.weights = weights_of(module)


def differing(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not ours[name].equal(theirs[name])]


# ---- between two states -----------------------------------------------------------------------------------------


def test_interpolation_written_out():
    start = {"w": torch.tensor([0.0, 1.0, -2.0]), "n": torch.tensor(3), "same": torch.tensor([0.1])}
    end = {"w": torch.tensor([1.0, 1.0, 2.0]), "n": torch.tensor(9), "same": torch.tensor([0.1])}
    between = interpolate_states(start, end, 0.25)
    torch.testing.assert_close(between["w"], torch.tensor([0.25, 1.0, -1.0]))
    assert between["n"].equal(torch.tensor(9))
    assert between["same"].equal(start["same"])
    assert (start["w"][0], end["w"][0]) == (0.0, 1.0)


def test_both_ends_are_exact():
    start, end = weights_of(make_module(0)), weights_of(make_module(1))
    assert len(differing(start, end)) > 10
    at_start, at_end = interpolate_states(start, end, 0.0), interpolate_states(start, end, 1.0)
    whole = {name: end[name] for name in end if not end[name].is_floating_point()}
    assert whole
    assert differing(at_start, {**start, **whole}) == []
    assert differing(at_end, end) == []
    at_end["head.linear.weight"].zero_()  # a copy
    assert bool(end["head.linear.weight"].any())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.zeros(2), "v": torch.zeros(1)}, r"'v': None at the start, \(\(1,\), torch.float32\) at the end"),
        ({"w": torch.zeros(3)}, r"'w': \(\(2,\), torch.float32\) at the start, \(\(3,\), torch.float32\) at the end"),
    ],
)
def test_states_that_do_not_match_are_refused(other, message):
    with pytest.raises(CheckpointError, match=f"cannot interpolate {message}"):
        interpolate_states({"w": torch.zeros(2)}, other, 0.5)


# ---- the choice -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory):
    """A run with a start; the state at its end."""
    run = tmp_path_factory.mktemp("interpolation") / "run"
    module = fit(run, make_data(folder))
    return load_start(run), weights_of(module), make_data(folder).evaluation_loader("val")


def test_each_alpha_is_measured_as_it_is(two):
    start, end, loader = two
    module = make_module(7)
    mixed = choose_alpha(module, start, end, loader, alphas=(0.0, 0.5, 1.0))
    assert (mixed.alphas, list(mixed.figures), mixed.monitor) == ((0.0, 0.5, 1.0), ["val_acc", "val_loss"], "val_loss")
    for alpha, acc, loss in zip(mixed.alphas, *mixed.figures.values(), strict=True):
        other = make_module(8)
        state = {
            name: (1 - alpha) * start[name].double() + alpha * end[name].double()
            if end[name].is_floating_point() else end[name]
            for name in end
        }  # fmt: skip
        other.load_state_dict({name: tensor.to(end[name].dtype) for name, tensor in state.items()})
        measured = classification_metrics(*predictions_of(other, loader), ("a", "b", "c"), resamples=2)
        assert acc == pytest.approx(measured["acc"])
        assert loss == pytest.approx(measured["loss"], rel=1e-4)
    assert differing(weights_of(module), interpolate_states(start, end, mixed.alpha)) == []


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        (((1.0, 2.0), (0.5, 1.5), (0.7, 1.7)), 0.5),  # every picture says so
        (((1.0, 2.0), (1.5, 2.5), (1.0, 2.0)), 1.0),  # a tie: the larger
        (((1.0, 2.0), (0.5, 1.5), (0.1, 2.1)), 1.0),  # worse on the mean, but not clearly
        (((0.5, 1.5), (1.0, 2.0), (1.1, 2.1)), 0.0),
    ],
)
def test_what_is_chosen(two, losses, chosen):
    """The largest share that is not clearly worse than the best, picture by picture."""
    start, end, loader = two
    results = iter(torch.tensor(losses, dtype=torch.float64))

    class Scripted(Task):
        def plain_figures(self, names, outputs, targets):
            return dict.fromkeys(names, 0.5)

        def picture_losses(self, outputs, targets):
            return next(results)

    module = make_module(7)
    module.task = Scripted(**{item.name: getattr(module.task, item.name) for item in fields(Task)})
    mixed = choose_alpha(module, start, end, list(loader)[:1], alphas=(0.0, 0.5, 1.0))
    figures = {"val_acc": (0.5, 0.5, 0.5), "val_loss": (0.5, 0.5, 0.5)}
    assert mixed == Interpolation((0.0, 0.5, 1.0), figures, chosen, "val_loss")
    assert differing(weights_of(module), interpolate_states(start, end, chosen)) == []


def test_eleven_alphas_by_default(two):
    start, end, loader = two
    mixed = choose_alpha(make_module(7), start, end, list(loader)[:1])
    assert mixed.alphas == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def test_the_curve_is_saved(tmp_path, real_figures):
    figures = {"val_acc": (0.25, 0.75, 0.5), "val_loss": (1.5, 0.5, 1.0)}
    Interpolation((0.0, 0.5, 1.0), figures, 0.5, "val_acc").save(tmp_path)
    assert read_csv(tmp_path / "interpolation.csv") == [
        {"alpha": "0.0", "val_acc": "0.25", "val_loss": "1.5", "chosen": "0"},
        {"alpha": "0.5", "val_acc": "0.75", "val_loss": "0.5", "chosen": "1"},
        {"alpha": "1.0", "val_acc": "0.5", "val_loss": "1.0", "chosen": "0"},
    ]
    with Image.open(tmp_path / "interpolation.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


# ---- the start --------------------------------------------------------------------------------------------------


def test_the_start_is_where_more_than_the_head_begins_to_learn(folder, tmp_path):
    first = AtBatch(STEPS + 1)
    module = fit(tmp_path / "run", make_data(folder), first)
    start = load_start(tmp_path / "run")
    assert differing(start, first.weights) == []
    fresh = weights_of(make_module())
    assert all(start[name].equal(fresh[name]) for name in fresh if name.startswith("backbone."))
    assert not start["head.linear.weight"].equal(fresh["head.linear.weight"])  # the probe's
    assert differing(start, weights_of(module))


def test_a_solved_head_is_kept_as_it_was_softened(folder, tmp_path):
    module = make_module()
    with torch.no_grad():
        module.head.linear.weight.mul_(100)
    solved = module.head.linear.weight.detach().clone()
    phases = [Phase("probe", epochs=0, train="head", solve=True), Phase("all", epochs=1, schedule=Constant())]
    fit(tmp_path / "run", make_data(folder), module=module, phases=phases, solved=solve_and_soften(module, 3.0))
    assert load_start(tmp_path / "run")["head.linear.weight"].equal(solved * 0.1)


def test_a_run_of_the_head_alone_has_no_start(folder, tmp_path):
    fit(tmp_path / "run", make_data(folder), phases=PHASES[:1])
    with pytest.raises(CheckpointError, match=r"start\.safetensors: missing"):
        load_start(tmp_path / "run")


def test_a_damaged_start_is_written_again_where_it_can(folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(run, make_data(folder), stop_at=STEPS)
    path = run / "checkpoints" / "start.safetensors"
    path.write_bytes(b"half")
    first = AtBatch(STEPS + 1)
    fit(run, make_data(folder), first, checkpoint=run / "checkpoints" / "last.ckpt")
    assert differing(load_start(run), first.weights) == []


@pytest.mark.parametrize("step", [STEPS + 2, 2 * STEPS])
def test_a_start_that_is_gone_stops_the_resume(folder, tmp_path, step):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(run, make_data(folder), stop_at=step)
    (run / "checkpoints" / "start.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"start\.safetensors: missing - run `finetune` again with --overwrite"):
        fit(run, make_data(folder), checkpoint=run / "checkpoints" / "last.ckpt")


def test_other_ranks_do_not_write(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(L.Trainer, "is_global_zero", property(lambda self: False))
    fit(tmp_path / "run", make_data(folder))
    assert not (tmp_path / "run" / "checkpoints" / "start.safetensors").exists()
