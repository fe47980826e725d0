"""Compiled steps: the same training as by eager ones, frozen parts and phases included, and never a lost one.

Code is made by dynamo and AOTAutograd, and run without inductor, which takes half a minute: what is guarded and what
has gradients is settled before it. One test goes through inductor.
"""

import copy
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from small_runs import SignalAt, make_data, make_module, make_trainer
from torch import nn

from transferkit.core.errors import ConfigError, Interrupted
from transferkit.models.module import TransferModule
from transferkit.training.craft.ema import EMA
from transferkit.training.finetune import finetune
from transferkit.training.loop import compiling
from transferkit.training.loop.compiling import CompiledSteps, compile_learning
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.phases import Phase

PHASES = (Phase("head", 1, train="head"), Phase("last", 1, train=("layer4", "head")), Phase("all", 2))
real_compile = torch.compile


@pytest.fixture
def no_inductor(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(real_compile, backend="aot_eager"))


class Watch(L.Callback):
    """Notes of each step whether it ran compiled, which parameters have gradients, and which buffers moved."""

    def __init__(self):
        self.compiled, self.graded, self.shapes = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.compiled.append(module.compiled is not None and tuple(batch[0].shape) == tuple(module.compiled.shape))
        self.shapes.append(tuple(batch[0].shape[1:]))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.graded.append({name for name, parameter in module.named_parameters() if parameter.grad is not None})


def fit(root, folder, *, compiled, phases=PHASES, callbacks=(), module=None, data=None, **options):
    module = make_module(drop_rate=options.pop("drop_rate", 0.0)) if module is None else module
    watch = Watch()
    steps = [CompiledSteps()] if compiled else []
    trainer = make_trainer(root, PhaseSchedule(phases), *callbacks, *steps, watch, **options)
    trainer.fit(module, datamodule=data or make_data(folder))
    return module, watch, steps[0] if steps else None


def far(ours, theirs):
    """Return the largest difference of two modules' states over the size of the tensor."""
    states = ours.state_dict(), theirs.state_dict()
    assert states[0].keys() == states[1].keys()
    return max(
        float(
            (states[0][name].double() - states[1][name].double()).abs().max()
            / (states[1][name].double().abs().max() + 1e-3)
        )
        for name in states[0]
    )


def test_phases_by_compiled_steps_are_those_by_eager_ones(folder, tmp_path, no_inductor):
    ours, watch, steps = fit(tmp_path, folder, compiled=True)
    theirs, eager, _ = fit(tmp_path, folder, compiled=False)
    assert watch.compiled == [False] * 6 + [True] * 18  # nothing to gain where only the head learns
    assert steps.made == 2  # once for each phase that has more
    assert watch.graded == eager.graded
    assert watch.graded[0] == {"head.linear.weight", "head.linear.bias"}
    assert {name.split(".")[2] for name in watch.graded[6] if name.startswith("backbone")} == {"layer4"}
    assert len(watch.graded[-1]) == len(list(ours.parameters()))
    assert far(ours, theirs) < 1e-3
    assert ours.compiled is None
    assert not any("_orig_mod" in name for name in ours.state_dict())


def test_that_comparison_can_fail(folder, tmp_path):
    ours, *_ = fit(tmp_path, folder, compiled=False)
    theirs, *_ = fit(tmp_path, folder, compiled=False, module=make_module(1))
    assert far(ours, theirs) > 1e-2


def test_a_frozen_part_is_exact_and_thawing_one_makes_new_code(folder, tmp_path, no_inductor):
    """Of code that was made while a part was frozen, that part would never learn."""
    phases = (
        Phase("late", 1, train=("layer3", "layer4", "head")),
        Phase("all", 1),
        Phase("late again", 1, train=("layer4", "head")),
    )
    states = {}

    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            states[trainer.current_epoch] = copy.deepcopy(module.state_dict())

    start = copy.deepcopy(make_module().state_dict())
    _, watch, steps = fit(tmp_path, folder, compiled=True, phases=phases, callbacks=[Keep()])
    assert all(watch.compiled)
    assert steps.made == 3
    moved = [
        {name for name in after if not after[name].equal(before[name])}
        for before, after in ((start, states[0]), (states[0], states[1]), (states[1], states[2]))
    ]
    early = {
        name for name in start if name.startswith("backbone") and name.split(".")[2] in ("conv1", "layer1", "layer2")
    }
    assert not moved[0] & early
    assert early - {name for name in early if "num_batches" in name} <= moved[1]
    assert {name for name in moved[2] if name.startswith("backbone")} == {
        name for name in start if "layer4" in name
    }  # fmt: skip


@pytest.mark.parametrize(
    ("times", "most", "made", "misfits"),
    [(1, 3, 2, 1), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((5, 3, 3, 3), (5, 1, 2, 2)))],
)
def test_what_changes_behind_the_back_of_the_phases(
    folder, tmp_path, no_inductor, caplog, monkeypatch, times, most, made, misfits
):
    """The step that notices is eager and whole, and code is made anew; but not for ever (fault 217)."""

    monkeypatch.setattr(compiling, "MOST_EXPIRED", most)

    class Meddle(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if 0 < batch_idx <= times:
                for part in module.backbone.modules():
                    if isinstance(part, nn.BatchNorm2d):
                        part.training = not part.training

    one, _, steps = fit(tmp_path, folder, compiled=True, phases=(Phase("all", 1),), callbacks=[Meddle()])
    two, *_ = fit(tmp_path, folder, compiled=False, phases=(Phase("all", 1),), callbacks=[Meddle()])
    assert far(one, two) < 1e-3
    assert steps.made == made
    messages = [record.getMessage() for record in caplog.records if record.name == "transferkit"]
    assert sum("no longer fit" in message for message in messages) == misfits
    assert sum("going on in eager mode" in message for message in messages) == (misfits > most)


def test_short_batches_validation_dropout_and_an_average(folder, tmp_path, no_inductor):
    """24 training pictures in batches of 7 leave one of 3, which runs eagerly; so does all of validation."""
    data = make_data(folder).in_batches_of(7)
    options = {"phases": (Phase("all", 2),), "drop_rate": 0.3}
    ours, watch, steps = fit(tmp_path, folder, compiled=True, data=data, callbacks=[EMA(0.5)], **options)
    theirs, *_ = fit(tmp_path, folder, compiled=False, data=data, callbacks=[EMA(0.5)], **options)
    assert watch.compiled == [True, True, True, False] * 2
    assert steps.made == 1
    assert far(ours, theirs) < 1e-3  # dropout draws what it would have drawn


@pytest.mark.slow
def test_each_size_has_its_code_and_they_are_bounded(folder, tmp_path, no_inductor):
    data = make_data(folder)
    sized = type(data)(folder, batch_size=4, train_size="24,32", data_config=data.data_config, seed=0)
    _, watch, steps = fit(tmp_path, folder, compiled=True, phases=(Phase("all", 4),), data=sized)
    assert watch.shapes == [(3, 24, 24)] * 12 + [(3, 32, 32)] * 12
    assert all(watch.compiled)
    assert steps.made == 2


def raising(*args, **options):
    raise RuntimeError("no C++ compiler here\nand a second line")


@pytest.mark.parametrize(
    "where", ["at once", pytest.param("at the first step", marks=pytest.mark.slow), "in the backward pass"]
)
def test_without_a_compiler_it_goes_on_in_eager_mode(folder, tmp_path, monkeypatch, caplog, where):  # fault 216
    """One warning, and the run is, bit for bit, that of eager steps: nothing moved while code was being made."""
    options = {"phases": (Phase("last", 1, train=("layer4", "head")), Phase("all", 1)), "drop_rate": 0.3}
    theirs, *_ = fit(tmp_path, folder, compiled=False, **options)
    if where == "at once":
        monkeypatch.setattr(torch, "compile", raising)
    elif where == "at the first step":
        monkeypatch.setattr(torch, "compile", lambda network, **options: raising)
    else:
        monkeypatch.setattr(torch, "compile", partial(real_compile, backend="eager"))
        monkeypatch.setattr(compiling.torch.autograd, "backward", broken_backward(torch.autograd.backward))
    ours, watch, steps = fit(tmp_path, folder, compiled=True, **options)
    assert not any(watch.compiled)
    assert steps.made == 0
    assert far(ours, theirs) == 0.0
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message for message in messages if message.startswith("not compiled")] == [
        "not compiled (RuntimeError: no C++ compiler here); going on in eager mode"
    ]  # fmt: skip


def broken_backward(backward):
    """Break the first backward pass, which is that of the trial."""
    calls = []

    def call(*args, **options):
        calls.append(args)
        backward(*args, **options)
        if len(calls) == 1:
            raising()

    return call


class Branching(nn.Module):
    """A head of one's own that Python decides about by values: no one graph has it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 3)

    def forward(self, features):
        if float(features.detach().mean()) > 1e6:
            features = -features
        return self.scale(features.mean(1, keepdim=True))


def test_a_network_that_the_compiler_cannot_take_is_trained_eagerly(folder, tmp_path, no_inductor, caplog):  # fault 216
    def module():
        L.seed_everything(0, verbose=False)
        return TransferModule("test_resnet", 3, Branching(), weights="random", image_size=32)

    one, watch, _ = fit(tmp_path, folder, compiled=True, phases=(Phase("all", 1),), module=module())
    two, *_ = fit(tmp_path, folder, compiled=False, phases=(Phase("all", 1),), module=module())
    assert not any(watch.compiled)
    assert far(one, two) == 0.0
    assert sum("going on in eager mode" in record.getMessage() for record in caplog.records) == 1


def test_a_copy_runs_eagerly_and_the_trial_leaves_no_trace(no_inductor):
    module = make_module(drop_rate=0.5).train()
    images = torch.rand(4, 3, 32, 32)
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    module.head.linear.weight.grad = torch.ones_like(module.head.linear.weight)
    module.compiled = compile_learning(module, images)
    assert all(before[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    graded = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    assert graded == ["head.linear.weight"]
    assert copy.deepcopy(module).compiled is None
    assert module.compiled(images[:3]) is None
    module.eval()
    assert module.compiled(images) is None
    module.train()
    with torch.no_grad():
        assert module.compiled(images) is None
    assert module.compiled(images).requires_grad


def test_heads_of_maps_and_of_pyramids(no_inductor, caplog):
    """A pyramid is taken by hooks that come and go, which no graph has: its head learns eagerly."""
    for head, compiled in (("linear", True), ("fpn", False)):
        options = {"weights": "random", "image_size": 64, "task": "segmentation", "class_names": ["a", "b"]}
        module = TransferModule("test_resnet", 2, head, **options).train()
        images = torch.rand(2, 3, 64, 64)
        module.compiled = compile_learning(module, images)
        assert (module.compiled is not None) is compiled
        module.eval()  # the same batch norm twice
        theirs = module.learn_eagerly(images)
        module.train()
        assert torch.is_tensor(module.learn(images))
        assert theirs.shape == module.learn(images).shape
    assert sum("going on in eager mode" in record.getMessage() for record in caplog.records) == 1


def test_other_modules_are_refused(folder, tmp_path):
    class Own(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return None

        def validation_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

    with pytest.raises(ConfigError, match="compiles what a TransferModule learns, saw Own"):
        make_trainer(tmp_path, CompiledSteps(), max_epochs=1).fit(Own(), datamodule=make_data(folder))


@pytest.mark.slow
def test_a_run_of_the_command_resumes_in_mid_epoch_exactly(quick, tmp_path, no_inductor):  # fault 47
    """Also at another size, and with every name of the product as eager runs have it."""
    options = {**quick, "compile": "on", "probe_epochs": None, "train_size": "24,32", "drop_rate": 0.3, "ema": 0.9}
    options["store"] = str(tmp_path / "store")
    reference = finetune(**options, out=tmp_path / "reference").path
    for step in (3, 9):
        with pytest.raises(Interrupted):
            finetune(callbacks=[SignalAt(step)], **options, out=tmp_path / "run", resume=step > 3)
    finetune(out=tmp_path / "run", resume=True, quiet=True)
    ours, theirs = (load_file(run / "model.safetensors") for run in (tmp_path / "run", reference))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    eager = finetune(**{**options, "compile": "off"}, out=tmp_path / "eager").path
    assert load_file(eager / "model.safetensors").keys() == ours.keys()
    assert "compile: 'on'" in (reference / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_missing_compiler_in_a_real_process(folder, tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from transferkit.training.finetune import finetune\n"
        "finetune(data=sys.argv[1], out=sys.argv[2], backbone='test_resnet', weights='random', image_size=32,\n"
        "         epochs=1, batch_size=4, phases='finetune', compile='on', precision='32', accelerator='cpu',\n"
        "         workers=0, quiet=True)\n"
    )
    environment = {
        **os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "XDG_CACHE_HOME": str(tmp_path / "user"), "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }  # fmt: skip
    words = [sys.executable, "-c", script, str(folder), str(tmp_path / "run"), str(Path(__file__).parents[3])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    remarks = [line for line in done.stderr.splitlines() if "eager mode" in line]
    assert len(remarks) == 1, done.stderr
    assert remarks[0].startswith("not compiled (")
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.slow
def test_through_inductor(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    phases = (Phase("all", 1),)
    ours, watch, steps = fit(tmp_path, folder, compiled=True, phases=phases)
    theirs, *_ = fit(tmp_path, folder, compiled=False, phases=phases)
    assert all(watch.compiled)
    assert steps.made == 1
    assert far(ours, theirs) < 1e-2
