"""L2-SP: the gradient is that of the penalty written out, once a step, on what learns; exact resume."""

import lightning as L
import pytest
import small_runs
import torch
from small_runs import STEPS, make_data, train
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.training.craft.l2sp import L2SP
from transferkit.training.plan.phases import Phase
from transferkit.training.schedules.schedules import Constant

PHASES = [
    Phase("top", epochs=1, train=("head", "layer4"), lr=1e-2, schedule=Constant()),
    Phase("all", epochs=1, lr=1e-2, schedule=Constant()),
]
OPTIONS = {"optimizer": "sgd", "weight_decay": 0.1, "lr": 1e-2}


def make_module():
    return small_runs.make_module(**OPTIONS)


def fit(run, data, *callbacks, module=None, **options):
    return train(run, data, PHASES, *callbacks, module=make_module() if module is None else module, **options)[0]


class Gradients(L.Callback):
    """Writes down weights and gradients before a step, and the gradients as they were clipped."""

    def __init__(self):
        self.steps, self.clipped, self.decays, self.backwards = [], [], [], 0

    def on_after_backward(self, trainer, module):
        self.backwards += 1

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append(
            {name: (p.detach().clone(), None if p.grad is None else p.grad.clone())
             for name, p in module.named_parameters()}
        )  # fmt: skip
        self.decays.append({group["name"]: group["weight_decay"] for group in optimizer.param_groups})

    def on_before_zero_grad(self, trainer, module, optimizer):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if grads:
            self.clipped.append(float(nn.utils.get_total_norm(grads)))


def pair(folder, tmp_path, strength, **options):
    """Gradients of every step before and after the callback, and the starting weights."""
    before, after, module = Gradients(), Gradients(), make_module()
    starts = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    fit(tmp_path / "run", make_data(folder), before, L2SP(strength), after, module=module, **options)
    return starts, before, after


def test_the_gradient_is_that_of_the_penalty(folder, tmp_path):
    starts, before, after = pair(folder, tmp_path, 0.3)
    assert len(after.steps) == 2 * STEPS
    pulled = 0
    for number, (plain, added) in enumerate(zip(before.steps, after.steps, strict=True)):
        for name, (weight, gradient) in plain.items():
            if gradient is None:  # frozen
                assert added[name][1] is None
                assert number < STEPS
                assert not name.startswith(("head.", "backbone.model.layer4"))
                continue
            if name.startswith("head."):
                assert added[name][1].equal(gradient)
                continue
            leaf = weight.clone().requires_grad_()
            penalty = 0.3 / 2 * ((leaf - starts[name]) ** 2).sum()
            (expected,) = torch.autograd.grad(penalty, leaf)
            torch.testing.assert_close(added[name][1] - gradient, expected, rtol=1e-3, atol=1e-6)
            pulled += bool(expected.abs().max() > 1e-4)
    assert pulled > 20  # the weights did move away


def test_what_is_frozen_is_not_touched(folder, tmp_path):  # fault 49
    module = make_module()
    start = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    states = []

    class Epochs(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            states.append({name: tensor.clone() for name, tensor in module.backbone.state_dict().items()})

    fit(tmp_path / "run", make_data(folder), L2SP(0.3), Epochs(), module=module)
    moved = [{name for name, tensor in state.items() if not tensor.equal(start[name])} for state in states]
    assert {name.split(".")[1] for name in moved[0]} == {"layer4"}
    assert any("layer1" in name for name in moved[1])


def test_it_replaces_weight_decay_in_the_backbone_only(folder, tmp_path):
    _, _, after = pair(folder, tmp_path, 0.3)
    for decays in after.decays:
        assert {name: decay for name, decay in decays.items() if decay} == {"head.decay": 0.1}
    plain = Gradients()
    fit(tmp_path / "plain", make_data(folder), plain)
    assert sum(decay > 0 for decay in plain.decays[0].values()) > 3


def test_once_a_step_under_accumulation(folder, tmp_path):
    starts, before, after = pair(folder, tmp_path, 0.3, accumulate_grad_batches=3)
    assert (before.backwards, len(after.steps)) == (12, 4)
    away = {name: before.steps[3][name][0] - start for name, start in starts.items() if name.startswith("backbone.")}
    name = max(away, key=lambda name: float(away[name].abs().max()))
    assert float(away[name].abs().max()) > 1e-3
    added = after.steps[3][name][1] - before.steps[3][name][1]
    torch.testing.assert_close(added, 0.3 * away[name], rtol=1e-3, atol=1e-6)


def test_it_is_clipped_like_a_term_of_the_loss(folder, tmp_path):
    _, _, after = pair(folder, tmp_path, 50.0, gradient_clip_val=0.01)
    assert len(after.clipped) > STEPS
    assert after.clipped == pytest.approx([0.01] * len(after.clipped), rel=1e-3)


def test_a_strong_pull_keeps_the_backbone_near_its_start(folder, tmp_path):
    start = make_module().backbone.state_dict()

    def distance(module):
        return sum(float((p.detach() - start[name]).square().sum()) for name, p in module.backbone.named_parameters())

    free, tied = (fit(tmp_path / name, make_data(folder), *more) for name, more in (("a", ()), ("b", (L2SP(20.0),))))
    assert distance(tied) < 0.5 * distance(free)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf"), float("nan")])
def test_strengths_out_of_range_are_refused(strength):
    with pytest.raises(ConfigError, match="l2_sp is .*, expected a finite number above 0"):
        L2SP(strength)


def test_scaled_gradients_and_other_modules_are_refused():
    class Scaled:
        precision = "16-mixed"

    with pytest.raises(ConfigError, match="scaled gradients of precision 16-mixed - use 32 or bf16"):
        L2SP(0.1).setup(Scaled, make_module(), "fit")
    with pytest.raises(
        ConfigError, match=r"L2SP needs a module with groups\(\) and train_groups\(\), saw LightningModule"
    ):
        L2SP(0.1).setup(Scaled, L.LightningModule(), "fit")
