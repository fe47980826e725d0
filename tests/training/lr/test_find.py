"""`find_lr`: what it sweeps, that it equals a loop by hand, and that it leaves no trace."""

import copy
import csv
import itertools
import math
import pickle
import random

import lightning as L
import numpy as np
import parallel_worker as worker
import pytest
import torch
from small_runs import make_trainer
from torch.nn import functional

from transferkit.core.errors import ConfigError, DataError, StorageError
from transferkit.core.records import DataConfig
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.samplers import EpochSampler
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.lr.find import VAL_PICTURES, find_lr, run_range_test
from transferkit.training.lr.range_test import RangeTest
from transferkit.training.lr.result import LRSearch
from transferkit.training.lr.rules import RULES
from transferkit.training.plan.phases import Phase
from transferkit.training.ranks.parallel import rank

PROBE = Phase("probe", epochs=1, train="head")
STILL = {"steps": 30, "lr_min": 1e-12, "lr_max": 1e-11}
"""LRs at which nothing learns: all losses are those of the weights as they are."""


def build(folder, backbone="test_resnet", *, seed=0, kind=TransferModule, batch_size=8, augment="none", **options):
    torch.manual_seed(seed)
    network = create_backbone(backbone, weights="random" if "test" in backbone else "bundled", image_size=32)
    data = ImageData(folder, batch_size=batch_size, augment=augment, data_config=network.data_config)
    return kind(network, 3, **options), data


@pytest.fixture
def pair(folder):
    return build(folder, drop_rate=0.1, augment="standard")


def features_of(module, data):
    """The features of the training pictures, as a plain loop computes them, and the labels."""
    loader = data.evaluation_loader("train")
    with torch.inference_mode():
        rows = [(module.backbone.eval()(data.on_after_batch_transfer(batch, 0)[0]), batch[1]) for batch in loader]
    return torch.cat([X for X, _ in rows]).clone(), torch.cat([y for _, y in rows]).clone()


def on_features(module, data, **options):
    """The range test of the head alone, on features."""
    features = features_of(copy.deepcopy(module), data)
    progress = options.pop("progress", None)
    return run_range_test(module, data, RangeTest(**options), phase=PROBE, features=features, progress=progress)


def stop_at(step):
    def stop(done, total):
        if done == step:
            raise KeyboardInterrupt

    return stop


# ---- no trace ---------------------------------------------------------------------------------------------------


def raw(tensor):
    return None if tensor is None else tensor.detach().cpu().contiguous().numpy().tobytes()


def generators():
    return random.getstate(), pickle.dumps(np.random.get_state()), raw(torch.get_rng_state())


def snapshot(module, trainer=None):
    """Everything that a test could leave a trace on, as values that `==` compares."""
    traces = {
        "weights": {name: (id(value), raw(value)) for name, value in module.named_parameters()},
        "buffers": {name: raw(value) for name, value in module.named_buffers()},
        "modes": {name: part.training for name, part in module.named_modules()},
        "learns": {name: value.requires_grad for name, value in module.named_parameters()},
        "gradients": {name: raw(value.grad) for name, value in module.named_parameters()},
        "hooks": {name: len(part._forward_hooks) for name, part in module.named_modules()},
        "sums": raw(module.train_sums()),
        "boundary": id(module.passage.boundary),
        "trainer": id(module._trainer),
        "random": generators(),
    }
    if trainer is not None:
        optimizer = trainer.optimizers[0].state_dict()
        state = {key: {name: raw(torch.as_tensor(value)) for name, value in values.items()}
                 for key, values in optimizer["state"].items()}  # fmt: skip
        groups = [{key: value for key, value in group.items() if key != "params"}
                  for group in trainer.optimizers[0].param_groups]  # fmt: skip
        loader = trainer.train_dataloader
        traces |= {
            "optimizer": state,
            "groups": groups,
            "callbacks": list(map(id, trainer.callbacks)),
            "loggers": list(map(id, trainer.loggers)),
            "step": (trainer.global_step, trainer.current_epoch, trainer.max_epochs, trainer.max_steps),
            "loader": (id(loader), loader.state_dict(), loader.sampler.epoch, loader.sampler.start),
            "data": {key: id(value) for key, value in trainer.datamodule.__dict__.items()},
        }
    return traces


def unevenly(module):
    """Put a module into a state that a careless restore would not get right."""
    module.train_groups(["layer4", "head"])
    module.train()
    module.head.drop.eval()
    module.backbone.stages()["layer2"].train()
    for value in module.head.parameters():
        value.grad = torch.full_like(value, 0.5)
    random.seed(1)
    np.random.seed(2)
    np.random.standard_normal()  # leaves the second of a pair behind
    torch.manual_seed(3)


def test_the_snapshot_sees_every_trace(pair):
    module, _ = pair
    unevenly(module)
    before = snapshot(module)
    assert snapshot(module) == before

    def moved(change):
        change()
        after = snapshot(module)
        return {key for key in before if after[key] != before[key]}

    assert moved(lambda: torch.rand(1)) == {"random"}
    torch.manual_seed(3)
    assert moved(lambda: module.head.drop.train()) == {"modes"}
    module.head.drop.eval()
    assert moved(lambda: module.head.linear.weight.grad.add_(1e-7)) == {"gradients"}
    module.head.linear.weight.grad.fill_(0.5)
    bias = module.head.linear.bias
    assert moved(lambda: bias.requires_grad_(False)) == {"learns"}
    bias.requires_grad_(True)
    assert moved(lambda: bias.data.add_(1e-7)) == {"weights"}
    bias.data.zero_()
    assert moved(lambda: next(module.buffers()).add_(1)) == {"buffers"}


@pytest.mark.parametrize("variant", ["train", "val", "features"])
def test_it_leaves_no_trace(pair, variant, tmp_path, monkeypatch):  # fault 72, fault 76
    module, data = pair
    place = tmp_path / "read-only"
    place.mkdir()
    place.chmod(0o555)
    monkeypatch.chdir(place)
    unevenly(module)
    data.index  # noqa: B018  # reading the pictures is no trace
    before, facts = snapshot(module), {key: id(value) for key, value in data.__dict__.items()}
    find = on_features if variant == "features" else find_lr
    result = find(module, data, steps=30, **({"measure": "val"} if variant == "val" else {}))
    assert len(result.lrs) > 10
    assert snapshot(module) == before
    with pytest.raises(KeyboardInterrupt):
        find(module, data, steps=30, progress=stop_at(5))
    assert snapshot(module) == before
    assert {key: id(value) for key, value in data.__dict__.items()} == facts
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("error", "at"), [(KeyboardInterrupt, 0), (RuntimeError, 1), (KeyboardInterrupt, 29)])
def test_no_trace_after_a_stop_within_a_step(pair, error, at, monkeypatch):  # fault 72
    module, data = pair
    unevenly(module)
    before = snapshot(module)
    step = TransferModule.training_step

    def failing(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        np.random.rand(), random.random()
        if batch_idx == at:
            raise error
        return loss

    monkeypatch.setattr(TransferModule, "training_step", failing)
    with pytest.raises(error):
        find_lr(module, data, steps=30, lr_max=1e-3)
    assert snapshot(module) == before


@pytest.mark.gpu
def test_no_trace_on_a_gpu(pair):  # fault 72
    module, data = pair
    module.to("cuda")
    before, state = snapshot(module), raw(torch.cuda.get_rng_state())
    there = find_lr(module, data, steps=40, lr_max=0.03)
    assert snapshot(module) == before
    assert raw(torch.cuda.get_rng_state()) == state
    assert module.device.type == "cuda"
    module.cpu()
    sent = find_lr(module, data, steps=40, lr_max=0.03, device="cuda")
    assert module.device.type == "cpu"
    assert sent.raw_losses == pytest.approx(there.raw_losses, rel=1e-2)
    assert raw(torch.cuda.get_rng_state()) == state
    features = features_of(copy.deepcopy(module), data)  # on the CPU
    head = run_range_test(module.to("cuda"), data, RangeTest(steps=40), phase=PROBE, features=features)
    assert len(head.lrs) > 15
    assert raw(torch.cuda.get_rng_state()) == state


def test_where_it_is_called_from_does_not_matter(pair):
    module, data = pair
    expected = find_lr(module, data, steps=30)
    for around in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        torch.rand(5)
        with around:
            assert find_lr(module, data, steps=30) == expected


# ---- in a run ---------------------------------------------------------------------------------------------------

PHASES = (
    Phase("probe", epochs=2, train="head", lr=1e-2),
    Phase("finetune", epochs=7, train=("head", "layer[34]"), lr=1e-3, layer_decay=0.5),
)


class Looking(L.Callback):
    """Looks for the LR at some points of a run, and compares everything before and after."""

    def __init__(self, data, points):
        self.data = data
        self.points = points
        self.results = {}

    def look(self, point, trainer, module, **options):
        if point not in self.points:
            return
        before = snapshot(module, trainer)
        self.results[point] = find_lr(module, self.data, steps=30, **options)
        assert snapshot(module, trainer) == before
        with pytest.raises(KeyboardInterrupt):
            find_lr(module, self.data, steps=30, progress=stop_at(4), **options)
        assert snapshot(module, trainer) == before

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            self.look("before phase 2", trainer, pl_module, phase=PHASES[1])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.look(f"step {trainer.global_step}", trainer, pl_module)

    def on_validation_end(self, trainer, pl_module):
        self.look(f"validation {trainer.current_epoch}", trainer, pl_module)


class Saving(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 9:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(folder, root, *, points=(), checkpoint=None, save=None):
    """Train with a plain Trainer; return the module and the results by point."""
    module, data = build(folder, drop_rate=0.2, batch_size=4, augment="standard")
    looking = Looking(data, points)
    callbacks = [looking, PhaseSchedule(PHASES), *([Saving(save)] if save else [])]
    trainer = make_trainer(root, *callbacks, max_epochs=9)
    torch.manual_seed(7)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=checkpoint is not None)
    return module, looking.results


FROZEN = dict.fromkeys(("stem", "layer1", "layer2", "layer3", "layer4"), 0.0)
UPPER = {**FROZEN, "layer3": 0.25, "layer4": 0.5, "head": 1.0}
# Phase 1 trains the head alone; the phase that is asked for counts, not the one that is running. In mid-run the ratios
# are those of the running optimizer, wherever on its curve the LR is.
POINTS = {"before phase 2": UPPER, "step 5": {**FROZEN, "head": 1.0}, "step 50": UPPER, "validation 4": UPPER}


@pytest.mark.parametrize(
    ("points", "resumed"), [(POINTS, False), ({"before phase 2": UPPER, "step 9": {**FROZEN, "head": 1.0}}, True)]
)
def test_at_any_point_of_a_run(folder, tmp_path, points, resumed):  # fault 75
    checkpoint = tmp_path / "nine.ckpt" if resumed else None
    if resumed:
        fit(folder, tmp_path, save=checkpoint)
    undisturbed, _ = fit(folder, tmp_path, checkpoint=checkpoint)
    disturbed, results = fit(folder, tmp_path, points=points, checkpoint=checkpoint)
    assert {point: result.ratios for point, result in results.items()} == {
        point: pytest.approx(ratios) for point, ratios in points.items()
    }
    assert all(len(result.lrs) > 15 for result in results.values())  # its own step counter
    assert {name: raw(value) for name, value in disturbed.state_dict().items()} == {
        name: raw(value) for name, value in undisturbed.state_dict().items()
    }


def test_a_model_on_kept_activations_is_tested_on_pictures(pair):
    module, data = pair
    module.train_groups(["layer4", "head"])
    expected = find_lr(module, data, steps=30)
    boundary = module.passage.open_boundary("layer3")
    before = snapshot(module)
    assert find_lr(module, data, steps=30) == expected
    assert snapshot(module) == before
    assert module.passage.boundary is boundary


# ---- groups -----------------------------------------------------------------------------------------------------


class SpySGD(torch.optim.SGD):
    """Notes the LRs of each step."""

    lrs: list = []  # noqa: RUF012

    def step(self, closure=None):
        self.lrs.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


class ThreeGroups(TransferModule):
    """Head, last layer and the rest at 1e-2, 1e-3 and 1e-4."""

    def configure_optimizers(self):
        members = dict(self.groups())
        rest = [value for name in ("stem", "layer1", "layer2", "layer3") for _, value in members[name]]
        return SpySGD([
            {"params": rest, "lr": 1e-4, "name": "rest"},
            {"params": [value for _, value in members["layer4"]], "lr": 1e-3, "name": "layer4"},
            {"params": [value for _, value in members["head"]], "lr": 1e-2, "name": "head"},
        ])  # fmt: skip


def test_three_groups_keep_their_ratios(folder, monkeypatch):  # fault 73
    module, data = build(folder, kind=ThreeGroups)
    monkeypatch.setattr(SpySGD, "lrs", [])
    result = find_lr(module, data, steps=40, lr_min=1e-5, lr_max=10.0)
    assert len(SpySGD.lrs) >= len(result.lrs) > 10
    for lr, (rest, layer4, head) in zip(result.lrs, SpySGD.lrs, strict=False):
        assert (rest, layer4, head) == pytest.approx((lr * 0.01, lr * 0.1, lr), rel=1e-12)
    assert result.ratios == pytest.approx({"rest": 0.01, "layer4": 0.1, "head": 1.0})
    assert result.axis == "head"
    lr = result.suggestion
    assert lr is not None
    assert result.group_lrs == pytest.approx({"rest": lr * 0.01, "layer4": lr * 0.1, "head": lr})


def test_ratios_come_from_the_running_optimizer(folder, tmp_path):  # fault 73
    module, data = build(folder, kind=ThreeGroups)
    results = {}

    class Shifted(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            groups = trainer.optimizers[0].param_groups
            for group, lr in zip(groups, (2e-3, 4e-3, 8e-3), strict=True):
                group["lr"] = lr
            results["moved"] = find_lr(pl_module, data, steps=30)
            groups[1]["lr"] = 0.0
            with pytest.raises(ConfigError, match=r"layer4 trains, and its LR in the optimizer is 0.0.*pass phase="):
                find_lr(pl_module, data, steps=30)
            groups[1]["lr"] = groups[0]["lr"] = groups[2]["lr"] = 0.0
            for group, lr in zip(groups, (1.0, 2.0, 4.0), strict=True):
                group["initial_lr"] = lr  # as schedulers keep it that warm up from 0
            results["warmup"] = find_lr(pl_module, data, steps=30)
            trainer.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0})
            with pytest.raises(ConfigError, match=r"has 4 parameter groups, configure_optimizers\(\) builds 3"):
                find_lr(pl_module, data, steps=30)
            trainer.should_stop = True

    make_trainer(tmp_path, Shifted(), max_epochs=1, max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    assert results["moved"].ratios == pytest.approx({"rest": 0.25, "layer4": 0.5, "head": 1.0})
    assert results["warmup"].ratios == pytest.approx({"rest": 0.25, "layer4": 0.5, "head": 1.0})


def test_a_phase_says_what_trains_and_at_which_ratios(pair):  # fault 73
    module, data = pair
    phase = Phase("upper", 1, train=("layer3", "layer4", "head"), layer_decay=0.1, group_lrs={"layer3": 5e-5})
    result = find_lr(module, data, steps=30, phase=phase)
    frozen = dict.fromkeys(("stem", "layer1", "layer2"), 0.0)
    assert result.ratios == pytest.approx({**frozen, "layer3": 0.05, "layer4": 0.1, "head": 1.0})
    assert all(parameter.requires_grad for parameter in module.parameters())
    without_head = find_lr(module, data, steps=30, phase=Phase("middle", 1, train="layer4", layer_decay=0.1))
    assert (without_head.axis, without_head.ratios["layer4"], without_head.ratios["head"]) == ("head", 0.1, 0.0)


def test_a_phase_needs_groups_that_are_named(folder):
    module, data = build(folder, kind=ThreeGroups)
    with pytest.raises(ConfigError, match="does not say which layer group its parameters are of"):
        find_lr(module, data, phase=PROBE)


@pytest.mark.parametrize("built", [{"optimizer": None}, ([], [])])
def test_one_optimizer_or_an_error(pair, built, monkeypatch):
    module, data = pair
    monkeypatch.setattr(TransferModule, "configure_optimizers", lambda self: built)
    with pytest.raises(ConfigError, match="expected one optimizer, or a mapping with it"):
        find_lr(module, data)


# ---- what is swept ----------------------------------------------------------------------------------------------


def by_hand(module, data, lrs, *, val=False, trained=None, decay=1.0, clip=None, accumulate=1):
    """The test written out: a loop that stops for nothing."""
    twin = copy.deepcopy(module).to(memory_format=torch.channels_last)
    if trained is not None:
        twin.train_groups(trained)
    twin.train()
    optimizer = twin.configure_optimizers()
    loader = data.train_dataloader()
    names = twin.group_names()
    torch.manual_seed(data.seed)
    steps, losses = [], []
    for epoch in itertools.count():
        if len(steps) >= len(lrs):
            break
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        steps += [batches[first : first + accumulate] for first in range(0, len(batches), accumulate)]
    for lr, batches in zip(lrs, steps, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * decay ** (len(names) - 1 - names.index(group["group"]))
        optimizer.zero_grad()
        own = []
        for batch in batches:
            images, targets = data.on_after_batch_transfer(batch, 0)
            loss = functional.cross_entropy(twin(images), targets)
            (loss / accumulate).backward()
            own.append(float(loss.detach()))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        optimizer.step()
        if val:
            twin.eval()
            with torch.no_grad():
                (images, targets), *_ = data.evaluation_loader("val")
                images, targets = data.on_after_batch_transfer((images, targets), 0)
                own = [float(functional.cross_entropy(twin(images), targets))]
            twin.train()
        losses.append(sum(own) / len(own))
    return losses


@pytest.mark.parametrize(
    ("trained", "options"),
    [
        (None, {}),
        (None, {"measure": "val"}),
        (["layer4", "head"], {"measure": "val"}),
        pytest.param(["layer4", "head"], {"clip": 0.05}, marks=pytest.mark.slow),
        (None, {"clip": 0.05, "accumulate": 4}),  # of 6 batches an epoch: steps of 4 and 2
    ],
)
def test_it_equals_a_loop_by_hand(folder, trained, options):
    size = 4 if "accumulate" in options else 12  # one batch holds all of val
    module, data = build(folder, drop_rate=0.0, augment="light", batch_size=size, optimizer="sgd", momentum=0.0)
    phase = None if trained is None else Phase("upper", 1, train=trained, layer_decay=0.3)
    lrs = {"steps": 30, "lr_min": 1e-4, "lr_max": 0.3}
    result = find_lr(module, data, **lrs, phase=phase, **options)
    by = {**options, "trained": trained, "decay": 0.3 if trained else 1.0}
    val = by.pop("measure", "train") == "val"
    expected = by_hand(module, data, result.lrs, val=val, **by)
    assert len(expected) == 30
    assert list(result.raw_losses) == pytest.approx(expected, rel=1e-3)
    if "clip" in options:
        free = find_lr(module, data, **lrs, phase=phase, **{**options, "clip": None})
        assert free.raw_losses[-1] != pytest.approx(result.raw_losses[-1], rel=1e-2)


def test_exponential_and_linear():
    exponential, linear = (RangeTest(40, 1e-4, 1e-2, spacing).lrs() for spacing in ("exponential", "linear"))
    for lrs in (exponential, linear):
        assert (lrs[0], lrs[-1], len(lrs)) == (pytest.approx(1e-4), pytest.approx(1e-2), 40)
    assert np.diff(np.log(exponential)) == pytest.approx([math.log(100) / 39] * 39)
    assert np.diff(linear) == pytest.approx([(1e-2 - 1e-4) / 39] * 39)


def test_a_short_loader_is_cycled(folder, monkeypatch):  # fault 74
    module, data = build(folder, augment="standard")
    assert len(data.train_dataloader()) == 3
    epochs = []
    set_epoch = EpochSampler.set_epoch
    monkeypatch.setattr(EpochSampler, "set_epoch", lambda self, epoch: (epochs.append(epoch), set_epoch(self, epoch)))
    result = find_lr(module, data, steps=40, lr_max=1e-3)
    assert len(result.lrs) == 40
    assert epochs == list(range(14))  # 40 steps of 3 batches, each epoch in its own order


def test_it_stops_where_the_loss_diverges(folder):
    module, data = build(folder, optimizer="sgd")
    calls = []
    result = find_lr(module, data, steps=60, lr_min=1e-4, lr_max=1e4, progress=lambda *call: calls.append(call))
    assert 10 <= len(result.lrs) < 60
    assert calls == [(step + 1, 60) for step in range(len(result.lrs))]
    assert max(result.losses) <= 4 * min(result.losses)
    assert result.lrs[-1] < 1e4


def test_a_spike_among_the_first_points_does_not_stop_it(pair, monkeypatch):
    module, data = pair
    step = TransferModule.training_step

    def spiked(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (30.0 if batch_idx == 3 else 1.0)

    monkeypatch.setattr(TransferModule, "training_step", spiked)
    assert len(find_lr(module, data, steps=30, lr_max=1e-4).lrs) == 30


def test_pictures_are_prepared_as_the_trainer_would(folder):
    module, _ = build(folder)
    module.backbone.data_config = DataConfig(image_size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))
    configured = ImageData(folder, batch_size=8, augment="none", data_config=module.data_config)
    adopting = ImageData(folder, 32, batch_size=8, augment="none")
    before = adopting.data_config
    assert find_lr(module, adopting, **STILL) == find_lr(module, configured, **STILL)
    assert adopting.data_config == before != module.data_config


def test_mixed_pictures_are_mixed_and_validation_is_not(folder):
    module, data = build(folder)
    mixing = ImageData(folder, batch_size=8, augment="none", data_config=module.data_config, mixup=1.0)
    assert find_lr(module, mixing, **STILL).raw_losses != find_lr(module, data, **STILL).raw_losses
    mixed = find_lr(module, mixing, measure="val", phase=PROBE, **STILL)
    assert mixed.raw_losses == find_lr(module, data, measure="val", phase=PROBE, **STILL).raw_losses
    assert mixing.trainer is None


def test_a_phase_on_the_test_view_is_not_augmented(folder):
    module, plain = build(folder, augment="none")
    heavy = build(folder, augment="heavy")[1]
    shown = find_lr(module, heavy, phase=Phase("fixres", 1, train="head", test_view=True), **STILL)
    assert shown.raw_losses == find_lr(module, plain, phase=PROBE, **STILL).raw_losses
    assert shown.raw_losses != find_lr(module, heavy, phase=PROBE, **STILL).raw_losses


# ---- validation -------------------------------------------------------------------------------------------------


def test_validation_is_always_of_the_same_pictures(pair, monkeypatch):
    module, data = pair
    monkeypatch.setattr("transferkit.training.lr.find.VAL_PICTURES", 5)
    assert VAL_PICTURES == 64
    still = find_lr(module, data, measure="val", phase=PROBE, **STILL)
    assert len(set(still.raw_losses)) == 1  # nothing trains, nothing is drawn at random
    order = torch.randperm(12, generator=torch.Generator().manual_seed(data.seed))[:5].sort().values.tolist()
    images, targets = data.dataset("val").batch(order).labelled()
    module.eval()
    with torch.no_grad():
        logits = module(data.on_after_batch_transfer((images, targets), 0)[0])
    assert still.raw_losses[0] == pytest.approx(float(functional.cross_entropy(logits, targets)), rel=1e-5)
    assert still.measure == "val"


def test_no_validation_pictures_no_validation(folder):
    module, _ = build(folder)
    data = ImageData(folder / "train", 32, batch_size=8, val_split=0.0, test_split=0.0)
    with pytest.raises(DataError, match='measure="val" needs validation pictures'):
        find_lr(module, data, measure="val")


# ---- nothing to suggest -----------------------------------------------------------------------------------------


def nothing(result):
    assert result.suggestion is None
    assert result.group_lrs is None
    assert result.suggestions == dict.fromkeys(RULES)
    return result.reason


def test_nan_from_the_first_step_suggests_nothing(pair, tmp_path):  # fault 74
    module, data = pair
    with torch.no_grad():
        module.head.linear.bias.fill_(math.nan)
    result = find_lr(module, data)
    assert nothing(result).startswith("the loss is not finite from the first step on, at LR 1e-07")
    assert result.lrs == ()
    assert nothing(on_features(module, data)).startswith("the loss is not finite from the first step on")
    result.plot(tmp_path / "empty.png")
    result.save_csv(tmp_path / "empty.csv")


def test_a_loss_that_is_infinite_from_a_later_step_on_suggests_nothing(pair, monkeypatch):  # fault 74
    module, data = pair
    step = TransferModule.training_step

    def breaking(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (math.inf if batch_idx >= 6 else 1.0)

    monkeypatch.setattr(TransferModule, "training_step", breaking)
    assert nothing(find_lr(module, data)).startswith("after 6 steps the loss is not finite any more at LR")


# ---- arguments --------------------------------------------------------------------------------------------------


def test_bad_arguments_come_together(pair):
    module, data = pair
    module.requires_grad_(False)
    with pytest.raises(
        ConfigError,
        match=r"\(1\) steps is 10.*\(2\) lr_min is 1.0 and lr_max 0.1.*\(3\) spacing is 'log'.*\(4\) measure is 'test'"
        r".*\(5\) clip is 0.*\(6\) accumulate is 0.*\(7\) nothing in",
    ):
        find_lr(module, data, steps=10, lr_min=1.0, lr_max=0.1, spacing="log", measure="test", clip=0, accumulate=0)


def test_a_phase_must_be_one_that_trains(pair):
    module, data = pair
    with pytest.raises(ConfigError, match="phase 'probe' is solved, which takes no LR"):
        find_lr(module, data, phase=Phase("probe", 0, train="head", solve=True))
    with pytest.raises(ConfigError, match=r"'layer9' matches no layer group, module or parameter\. Did you mean"):
        find_lr(module, data, phase=Phase("upper", 1, train="layer9"))


def test_a_model_that_cannot_be_copied_is_an_error(pair):
    module, data = pair
    module.last_loss = module.head.linear.weight.sum()  # a tensor in the middle of a graph
    before = snapshot(module)
    with pytest.raises(ConfigError, match="the model cannot be copied"):
        find_lr(module, data)
    assert snapshot(module) == before


# ---- the record -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(folder):
    module, data = build(folder, "transferkit/mini")
    return find_lr(module, data)


def test_a_pretrained_network_gets_a_suggestion(result):
    assert result.reason is None
    assert 1e-5 < result.suggestion < 3e-2
    assert result.suggestion == result.suggestions[result.suggestion_rule]
    assert pickle.loads(pickle.dumps(result)) == result


def test_the_curve_is_written(result, tmp_path):
    result.save_csv(tmp_path / "lr.csv")
    with (tmp_path / "lr.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["lr", "loss", "smoothed"]
    for column, values in (("lr", result.lrs), ("loss", result.raw_losses), ("smoothed", result.losses)):
        assert tuple(float(row[column]) for row in rows) == values
    result.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"lr.csv", "lr.png"}
    for write in (result.save_csv, result.plot):
        with pytest.raises(StorageError, match="cannot write"):
            write(tmp_path / "missing" / "lr")


@pytest.mark.parametrize("spacing", ["exponential", "linear"])
def test_every_suggestion_is_marked(result, spacing, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("transferkit.training.lr.result.save_figure", lambda figure, path: drawn.append(figure))
    LRSearch(**{**result.__dict__, "spacing": spacing}).plot(tmp_path / "lr.png")
    axis = drawn[0].axes[0]
    assert axis.get_xscale() == ("log" if spacing == "exponential" else "linear")
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    lrs = [lr for lr in result.suggestions.values() if lr is not None]
    assert len(labels) == 2 + len(lrs)
    assert all(any(f"{lr:.2g}" in label for label in labels) for lr in lrs)
    assert sum("(in use)" in label for label in labels) == 1
    assert [line.get_xdata()[0] for line in axis.get_lines()[2:]] == lrs


# ---- the head on features ---------------------------------------------------------------------------------------


def test_features_stand_for_pictures(folder):
    module, data = build(folder, "transferkit/mini", label_smoothing=0.1)
    options = {"clip": 0.5, "accumulate": 2}  # of 3 batches an epoch
    quick = on_features(module, data, steps=40, **options)
    slow = find_lr(module, data, steps=40, phase=PROBE, **options)
    assert quick.raw_losses == pytest.approx(slow.raw_losses, rel=1e-3)
    assert quick.suggestion == pytest.approx(slow.suggestion, rel=1e-6)
    assert quick.ratios == slow.ratios
    assert quick.ratios["head"] == sum(quick.ratios.values()) == 1.0
    module.requires_grad_(False)  # what trains now does not matter: the phase says what does
    assert on_features(module, data, steps=40, **options) == quick


# ---- several processes ------------------------------------------------------------------------------------------


def of_one_rank(folder):
    """The curves and suggestions of one of two connected processes."""
    # Other weights on rank 1, which rank 0's replace, as in DDP.
    module, data = build(folder, "test_vit", seed=rank(), batch_size=4)
    before = snapshot(module)
    results = find_lr(module, data, clip=1.0, **SPAN), find_lr(module, data, measure="val", **SPAN)
    assert snapshot(module) == before
    return [(list(result.lrs), list(result.raw_losses), dict(result.suggestions)) for result in results]


SPAN = {"steps": 30, "lr_min": 1e-6, "lr_max": 0.03}


@pytest.mark.slow
def test_two_processes_agree(folder, tmp_path):  # fault 76
    first, second = worker.run_ranks(2, tmp_path, worker.connect_and, of_one_rank, str(folder))
    assert first == second
    # One process with the same pictures per step sees the same.
    module, data = build(folder, "test_vit", batch_size=8)
    alone = find_lr(module, data, clip=1.0, **SPAN)
    lrs, losses, suggestions = first[0]
    assert lrs == list(alone.lrs)
    assert losses == pytest.approx(alone.raw_losses, rel=2e-3)
    assert suggestions["valley"] == pytest.approx(alone.suggestions["valley"], rel=0.6)
