"""Phases on a real Trainer: freezing, static groups, learning rates, early stopping, divergence."""

from functools import partial

import lightning as L
import pytest
import small_runs
import torch
from small_runs import make_trainer
from torch import nn

from transferkit.core.errors import CheckpointError, ConfigError, TrainingError
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.samplers import EpochSampler
from transferkit.models.freezing import set_trainable
from transferkit.models.module import TransferModule
from transferkit.models.optimizers import build_optimizer, check_optimizer_state, param_groups
from transferkit.training.finetune import finetune
from transferkit.training.loop.finite import FiniteLoss
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.phases import Phase
from transferkit.training.schedules.schedules import Constant


@pytest.fixture
def data(folder):
    return ImageData(folder, image_size=32, batch_size=8, augment="none")


make_module = partial(small_runs.make_module, lr=1e-2)


class Watch(L.Callback):
    """Writes down, per batch, which groups have a gradient and every group's LR."""

    def __init__(self):
        self.rows = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        graded = {name for name, members in module.groups() if any(p.grad is not None for _, p in members)}
        lrs = {group["group"]: group["lr"] for group in optimizer.param_groups}
        self.rows.append((trainer.current_epoch, graded, lrs))


def test_phases_on_a_plain_trainer(data, tmp_path):
    phases = [
        Phase("probe", epochs=1, train="head", lr=1e-2, schedule=Constant()),
        Phase("top", epochs=1, train=("head", "layer4"), lr=1e-3, schedule=Constant(), layer_decay=0.5),
        Phase("all", epochs=1, lr=1e-4, schedule=Constant(), layer_decay=0.5),
    ]
    module, watch = make_module(), Watch()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    class Snapshot(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            moved.append({name for name in state if not state[name].equal(start[name]) and "metrics" not in name})

    moved: list[set[str]] = []
    trainer = make_trainer(tmp_path, PhaseSchedule(phases), watch, Snapshot())
    trainer.fit(module, data)
    assert trainer.current_epoch == 3
    names = module.group_names()
    expected = [
        ({"head"}, {name: 1e-2 if name == "head" else 0.0 for name in names}),
        ({"head", "layer4"}, {name: {"head": 1e-3, "layer4": 5e-4}.get(name, 0.0) for name in names}),
        (set(names), {name: 1e-4 * 0.5 ** (len(names) - 1 - names.index(name)) for name in names}),
    ]
    assert {epoch for epoch, _, _ in watch.rows} == {0, 1, 2}
    for epoch, graded, lrs in watch.rows:
        assert graded == expected[epoch][0]
        assert lrs == pytest.approx(expected[epoch][1])
    # Not a parameter and not a buffer outside the trained groups moved (fault 49).
    assert all(name.startswith("head.") for name in moved[0])
    assert all(name.startswith(("head.", "backbone.model.layer4")) for name in moved[1])
    assert any("running_mean" in name and "layer4" in name for name in moved[1])
    assert any("layer1" in name for name in moved[2])


def test_the_optimizer_holds_everything_once_from_step_0(data, tmp_path):
    module = make_module()
    steps = []

    class Identity(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            steps.append([id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]])

    phases = [Phase("probe", epochs=1, train="head"), Phase("all", epochs=1)]
    make_trainer(tmp_path, PhaseSchedule(phases), Identity()).fit(module, data)
    assert sorted(steps[0]) == sorted(id(parameter) for parameter in module.parameters())
    assert all(step == steps[0] for step in steps)


def test_the_audit_of_a_phase_can_fail(data, tmp_path):  # fault 49
    class Vandal(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            module.backbone.model.layer1[0].bn1.running_mean.add_(1)

    trainer = make_trainer(tmp_path, PhaseSchedule([Phase("probe", epochs=1, train="head")]), Vandal())
    with pytest.raises(TrainingError, match="frozen weights or buffers moved during phase 'probe'"):
        trainer.fit(make_module(), data)


def test_modes_at_each_phase_start(data, tmp_path):  # fault 50
    modes = []

    class Modes(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                modes.append((module.training, module.head.training, module.backbone.model.layer1.training))

    module = make_module().eval()  # as a feature pass may leave it
    phases = [Phase("probe", epochs=2, train="head"), Phase("all", epochs=1)]
    make_trainer(tmp_path, PhaseSchedule(phases), Modes()).fit(module, data)
    assert modes == [(True, True, False), (True, True, False), (True, True, True)]


def test_bad_phases_are_refused_before_the_first_batch(data, tmp_path):
    trainer = make_trainer(tmp_path, PhaseSchedule([Phase("a", epochs=1, train="layr4"), Phase("b", epochs=0)]))
    with pytest.raises(ConfigError, match=r"\(1\) phase 'a': 'layr4' matches no layer group.*\(2\) phase 'b': epochs"):
        trainer.fit(make_module(), data)


class Own(L.LightningModule):
    """A user's own module: two groups, a norm in the first, nothing of transferkit's but the two methods."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 3)

    def groups(self):
        return [(name, list(getattr(self, name).named_parameters(prefix=name))) for name in ("body", "head")]

    def train_groups(self, names):
        set_trainable(self, [parameter for name, members in self.groups() if name in names for _, parameter in members])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return build_optimizer("sgd", param_groups(self.groups(), weight_decay=0.0), lr=0.1)


def test_a_module_of_ones_own_trains_in_phases(data, tmp_path):
    module, watch = Own(), Watch()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    phases = [Phase("probe", epochs=1, train="head", lr=1e-2), Phase("all", epochs=1, lr=1e-3, layer_decay=0.5)]
    ends = []

    class Ends(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            state = module.state_dict()
            ends.append({name.split(".")[0] for name in state if not state[name].equal(before[name])})

    make_trainer(tmp_path, PhaseSchedule(phases), watch, Ends()).fit(module, data)
    assert ends == [{"head"}, {"body", "head"}]
    assert [graded for _, graded, _ in watch.rows] == [{"head"}] * 3 + [{"body", "head"}] * 3
    assert watch.rows[3][2] == pytest.approx({"body": 5e-4, "head": 1e-3})


class Ungrouped(Own):
    groups = train_groups = None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Unnamed(Own):
    configure_optimizers = Ungrouped.configure_optimizers


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Ungrouped,
            r"PhaseSchedule needs a module with groups\(\) and train_groups\(\), saw Ungrouped - fit a Transfer",
        ),
        (Unnamed, "the optimizer does not say which layer group its parameters are of"),
    ],
)
def test_a_module_without_groups_is_refused(data, tmp_path, module, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, PhaseSchedule([Phase("a", epochs=1)])).fit(module(), data)


def test_the_trainers_own_limit_comes_first(data, tmp_path):
    trainer = make_trainer(tmp_path, PhaseSchedule([Phase("a", epochs=3)]), max_epochs=1)
    trainer.fit(make_module(), data)
    assert trainer.current_epoch == 1


def test_frozen_backbone_runs_in_inference_mode(monkeypatch):
    module = make_module()
    inference = []
    original = type(module.backbone).forward
    monkeypatch.setattr(
        type(module.backbone), "forward",
        lambda self, images: inference.append(torch.is_inference_mode_enabled()) or original(self, images),
    )  # fmt: skip
    module.train_groups(["head"])
    images = torch.randn(2, 3, 32, 32)
    module(images).sum().backward()
    assert module.head.linear.weight.grad is not None
    module.train_groups(module.group_names())
    module(images).sum().backward()
    assert inference == [True, False]


def test_param_groups_split_decay_by_kind():
    module = make_module()
    groups = param_groups(module.groups(), weight_decay=0.1)
    assert [group["group"] for group in groups[::2]] == list(module.group_names())
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["name"].endswith(".decay") else 0.0)
        assert all((p.ndim > 1) == group["name"].endswith(".decay") for _, p in group["params"])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_optimizers_take_the_reference_step(name):
    weight = torch.randn(3, 3)
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    groups = [{"params": [("w", ours)], "name": "g.decay", "group": "g", "weight_decay": 0.1}]
    optimizer = build_optimizer(name, groups, lr=0.1)
    reference = {
        "adamw": lambda: torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1, fused=False, foreach=False),
        "adam": lambda: torch.optim.Adam([theirs], lr=0.1, weight_decay=0.1, fused=False, foreach=False),
        "sgd": lambda: torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=False),
        "rmsprop": lambda: torch.optim.RMSprop([theirs], lr=0.1, alpha=0.99, momentum=0.9, weight_decay=0.1),
    }[name]()
    for _ in range(3):
        gradient = torch.randn(3, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_unknown_optimizer():
    with pytest.raises(ConfigError, match="unknown optimizer 'adamv'. Did you mean 'adam' or 'adamw'"):
        make_module(optimizer="adamv").configure_optimizers()


def test_optimizer_state_of_swapped_parameters_is_refused():
    module = make_module()
    optimizer = module.configure_optimizers()
    state = optimizer.state_dict()
    check_optimizer_state(optimizer, state)
    names = state["param_groups"][0]["param_names"]
    state["param_groups"][0]["param_names"] = names[::-1] if len(names) > 1 else ["other"]
    with pytest.raises(CheckpointError, match="the optimizer state in the checkpoint is of other parameters"):
        check_optimizer_state(optimizer, state)


def test_early_stopping_counts_in_the_last_phase_and_restores_the_best(quick, tmp_path):
    options = {"epochs": 6, "patience": 1, "lr": 1e-5, "monitor": "val_acc", "batch_norm": "batch"}
    run = finetune(**{**quick, **options}, out=tmp_path / "run")
    selection = run.metrics["selection"]
    assert selection["stopped_early"]
    assert run.metrics["phases"][1]["epochs"] < 6
    last = torch.load(run.path / "checkpoints" / "best.ckpt", weights_only=True)
    assert last["epoch"] == selection["epoch"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run(quick, tmp_path, monkeypatch, at_once):  # fault 44
    original, batches = TransferModule.training_step, []

    def poisoned(self, batch, batch_idx):
        images, targets = batch
        batches.append((self.current_epoch, batch_idx))
        return original(self, (images * float("nan") if batches[-1] == (1, 3) else images, targets), batch_idx)

    monkeypatch.setattr(TransferModule, "training_step", poisoned)
    if not at_once:  # as on a GPU, where the mean of the epoch is looked at
        monkeypatch.setattr(FiniteLoss, "on_train_batch_end", lambda *_: None)
    message = r"is nan in epoch 1, step \d+, at LR .*; the last finite state is .*last"
    with pytest.raises(TrainingError, match=message) as caught:
        finetune(**quick, out=tmp_path / "run")
    assert batches[-1] == ((1, 3) if at_once else (1, 5))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(t.isfinite().all() for t in saved["state_dict"].values())
    assert saved["epoch"] == 0
    if at_once:  # the order is a function of seed and epoch
        data = ImageData(quick["data"], 32, batch_size=4)
        keys = EpochSampler(24, batch_size=4, seed=0)
        keys.set_epoch(1)
        paths = [data.index.split("train")[job.picture].path for job in list(keys)[12:16]]
        assert f"step 10, at LR 0.001, on {', '.join(map(repr, paths))}; " in str(caught.value)


def test_a_learning_rate_far_too_high_is_an_error(quick, tmp_path):  # fault 44
    with pytest.raises(TrainingError, match="try a smaller --lr"):
        finetune(**{**quick, "lr": 1e30, "optimizer": "sgd", "clip": None, "phases": "finetune"}, out=tmp_path / "run")


def test_bf16_with_a_fused_optimizer_and_clipping_runs(quick, tmp_path):
    run = finetune(**{**quick, "precision": "bf16", "clip": 0.5}, out=tmp_path / "run")
    assert run.metrics["environment"]["precision"] == "bf16"
    assert run.metrics["val"]["n"] == 12


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_to_the_norm(data, tmp_path, precision):
    class Norms(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            before.append(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item())

        def on_before_zero_grad(self, trainer, module, optimizer):
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            if grads:
                after.append(nn.utils.get_total_norm(grads).item())

    before, after = [], []
    runner = make_trainer(tmp_path, Norms(), max_epochs=2, gradient_clip_val=0.01, precision=precision)
    runner.fit(make_module(), data)
    assert min(before) > 0.02
    assert after == pytest.approx([0.01] * len(after), rel=1e-3)
    assert after
