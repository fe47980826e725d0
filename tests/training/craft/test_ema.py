"""The average of the weights: its recursion, what sees it, what is left out of it, exact resume."""

import lightning as L
import pytest
import torch
from small_runs import STEPS, make_data, make_module, solve_and_soften, train
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from transferkit.core.errors import ConfigError
from transferkit.models.figures.classification import classification_metrics
from transferkit.runs.measure import predictions_of
from transferkit.training.craft.ema import EMA, decay_at
from transferkit.training.loop.checkpoints import AtomicCheckpointIO, load_checkpoint
from transferkit.training.plan.phases import Phase
from transferkit.training.schedules.schedules import Constant

# Three phases: more learns, then less again. 24 training pictures, 6 steps an epoch.
PHASES = [
    Phase("probe", epochs=1, train="head", lr=1e-2, schedule=Constant()),
    Phase("top", epochs=2, train=("head", "layer4"), lr=1e-2, schedule=Constant()),
    Phase("again", epochs=1, train="head", lr=1e-2, schedule=Constant()),
]


def fit(run, data, *callbacks, phases=PHASES, **options):
    return train(run, data, phases, *callbacks, **options)


def state_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Watch(L.Callback):
    """Writes down the weights at the first batch of each epoch, after each step, and as validation sees them."""

    def __init__(self):
        self.before, self.after, self.validated, self.averages = {}, [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.before[trainer.current_epoch] = state_of(module)

    def on_train_batch_end(self, trainer, module, *rest):
        self.after.append((trainer.current_epoch, trainer.global_step, state_of(module)))
        ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
        self.averages.append({name: tensor.clone() for name, tensor in ema.average.items()})

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.validated.append(state_of(module))


@pytest.mark.parametrize(
    ("decay", "updates", "expected"),
    # (1 + t) / (10 + t): 1/10, 2/11, 11/20, 91/100, 990/999
    [(0.999, 0, 0.1), (0.999, 1, 2 / 11), (0.999, 10, 0.55), (0.999, 90, 0.91), (0.9, 90, 0.9), (0.99, 989, 0.99)],
)
def test_the_decay_warms_up(decay, updates, expected):
    assert decay_at(decay, updates) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_decays_out_of_range_are_refused(decay):
    with pytest.raises(ConfigError, match=r"ema is .*, expected a decay in \(0, 1\)"):
        EMA(decay)


@pytest.fixture(scope="module")
def watched(folder, tmp_path_factory):
    """One run over all phases: its directory, what was written down, the module afterwards."""
    run, watch, ema = tmp_path_factory.mktemp("ema") / "run", Watch(), EMA(0.5)
    module, recorder = fit(run, make_data(folder), ema, watch)
    return run, watch, module, recorder


def test_the_average_is_the_recursion_written_out(watched):
    _, watch, _, _ = watched
    averaged, updates, epoch_of_phase = {}, 0, {0: 0, 1: 1, 2: 1, 3: 3}
    for position, (epoch, _, weights) in enumerate(watch.after):
        names = watch.averages[position].keys()
        if position % STEPS == 0 and epoch_of_phase[epoch] == epoch:  # a phase begins
            before = averaged if epoch else {}
            averaged = {name: before.get(name, watch.before[epoch][name].double()) for name in names}
            updates = 0
        decay = min(0.5, (1 + updates) / (10 + updates))
        averaged = {name: decay * averaged[name] + (1 - decay) * weights[name].double() for name in names}
        updates += 1
        for name in names:
            torch.testing.assert_close(watch.averages[position][name].double(), averaged[name], rtol=1e-4, atol=1e-6)
    assert len(watch.after) == 4 * STEPS
    # and it is another thing than the weights
    assert not watch.averages[-1]["head.linear.weight"].allclose(watch.after[-1][2]["head.linear.weight"], rtol=1e-3)


def test_what_learns_is_averaged_and_nothing_else(watched):
    _, watch, _, _ = watched
    head = {"head.linear.weight", "head.linear.bias"}
    first, second, last = (set(watch.averages[step]) for step in (0, STEPS, -1))
    assert first == last == head
    assert {name.removeprefix("backbone.model.").split(".")[0] for name in second - head} == {"layer4"}
    assert any(name.endswith("running_var") for name in second)  # batch norm's statistics go with its weights
    assert not any(name.endswith("num_batches_tracked") for name in second)


def test_validation_sees_the_average_and_frozen_tensors_as_they_are(watched):  # fault 49
    _, watch, _, _ = watched
    assert len(watch.validated) == 4
    for epoch, state in enumerate(watch.validated):
        _, _, weights = watch.after[(epoch + 1) * STEPS - 1]
        average = watch.averages[(epoch + 1) * STEPS - 1]
        assert state.keys() == weights.keys()
        for name in state:
            assert state[name].equal(average.get(name, weights[name])), name
    # layer4 learnt in the second phase and was frozen in the last: there the module's own tensors are what counts
    name = "backbone.model.layer4.0.conv1.weight"
    assert watch.validated[3][name].equal(watch.after[3 * STEPS - 1][2][name])
    assert not watch.validated[2][name].equal(watch.after[3 * STEPS - 1][2][name])


def test_training_goes_on_with_the_weights_after_validation(watched):
    _, watch, _, _ = watched
    for epoch in (1, 2, 3):
        ended, begun = watch.after[epoch * STEPS - 1][2], watch.before[epoch]
        assert [name for name in ended if not ended[name].equal(begun[name])] == []


def test_training_itself_is_as_without(watched, folder, tmp_path):
    run, _, _, _ = watched
    plain, _ = fit(tmp_path / "run", make_data(folder))
    state, raw = plain.state_dict(), load_checkpoint(run / "checkpoints" / "last.ckpt")["transferkit_ema"]["raw"]
    assert raw.keys() == {"head.linear.weight", "head.linear.bias"}
    assert all(state[name].equal(tensor) for name, tensor in raw.items())


def test_the_checkpoints_hold_the_average_and_the_weights_beside_it(watched, folder):  # fault 86
    run, watch, module, recorder = watched
    last, best = (load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert all(last["state_dict"][name].equal(tensor) for name, tensor in watch.averages[-1].items())
    weights = watch.after[-1][2]
    assert all(weights[name].equal(tensor) for name, tensor in last["transferkit_ema"]["raw"].items())
    # after `fit` the module has the average
    assert all(tensor.equal(last["state_dict"][name]) for name, tensor in module.state_dict().items())
    # the best epoch's figures are those of the state dict that is saved for it
    row = recorder.history.rows[recorder.selection.best_epoch]
    module.load_state_dict(best["state_dict"])
    data = make_data(folder)
    probs, targets = predictions_of(module, data.evaluation_loader("val"))
    measured = classification_metrics(probs, targets, module.class_names, resamples=2)
    assert row["val_acc"] == pytest.approx(measured["acc"])
    assert row["val_loss"] == pytest.approx(measured["loss"], rel=1e-5)


def test_it_starts_from_the_softened_head(folder, tmp_path):
    module, watch = make_module(), Watch()
    with torch.no_grad():
        module.head.linear.weight.mul_(100)
    solved = module.head.linear.weight.detach().clone()
    phases = [Phase("all", epochs=1, lr=1e-3, schedule=Constant())]
    probe = solve_and_soften(module, 3.0)
    fit(tmp_path / "run", make_data(folder), EMA(0.9), watch, module=module, solved=probe, phases=phases)
    softened, after = solved * 0.1, watch.after[0][2]["head.linear.weight"]
    torch.testing.assert_close(watch.averages[0]["head.linear.weight"], 0.1 * softened + 0.9 * after)
    # the solved head, which was best, is kept as it was solved
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["state_dict"]["head.linear.weight"].equal(solved)


def test_it_counts_optimizer_steps_under_accumulation(folder, tmp_path):
    ema, counts = EMA(0.9), []

    class Count(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            counts.append((trainer.global_step, ema.updates))

    phases = [Phase("all", epochs=1, lr=1e-3, schedule=Constant())]
    fit(tmp_path / "run", make_data(folder), ema, Count(), phases=phases, accumulate_grad_batches=4)
    assert counts == [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (2, 2)]  # six batches; the last two are a step too


def test_an_exception_in_validation_gives_the_weights_back(folder, tmp_path):
    module, watch = make_module(), Watch()

    class Trip(L.Callback):
        def on_validation_batch_end(self, *rest):
            raise RuntimeError("tripped")

    with pytest.raises(RuntimeError, match="tripped"):
        fit(tmp_path / "run", make_data(folder), EMA(0.5), watch, Trip(), module=module)
    assert not watch.validated[0]["head.linear.weight"].equal(watch.after[-1][2]["head.linear.weight"])
    assert module.head.linear.weight.equal(watch.after[-1][2]["head.linear.weight"])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_a_checkpoint_that_is_only_measured_gives_the_average(watched, folder):
    run, watch, _, _ = watched
    module = make_module()
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[EMA(0.5)], plugins=[AtomicCheckpointIO()], logger=False, default_root_dir=run,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.validate(
        module, datamodule=make_data(folder), ckpt_path=run / "checkpoints" / "last.ckpt", verbose=False,
        weights_only=True,
    )  # fmt: skip
    assert module.head.linear.weight.equal(watch.averages[-1]["head.linear.weight"])


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device: a tensor's value asked for, a copy to another device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten._to_copy):
            self.count += 1
        return function(*args, **(kwargs or {}))


class Between:
    """A Trainer between two steps."""

    world_size = 1
    global_step = 1


def test_a_step_waits_for_no_device():
    module, ema = make_module(), EMA(0.9)
    ema.on_train_batch_start(Between, module, None, 0)
    with Syncs() as syncs:
        for step in (2, 3):
            Between.global_step = step
            ema.on_train_batch_start(Between, module, None, step)
            ema.on_train_batch_end(Between, module, None, None, step)
    assert (ema.updates, syncs.count) == (2, 0)
    # the class that Lightning's callback is built on does wait, so the counter counts
    peer = AveragedModel(nn.Linear(2, 2), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with Syncs() as syncs:
        peer.update_parameters(nn.Linear(2, 2))
    assert syncs.count > 0
