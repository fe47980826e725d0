"""Whether steps are compiled: numbers alone decide, and what is measured is remembered."""

import dataclasses
import logging

import pytest
import torch

from transferkit.machine import timings
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training import compiling
from transferkit.training.compiling import COMPILE_S, GAIN, Costs, choose_compile, compiled_seconds, decide
from transferkit.training.setup import prepare
from transferkit.training.steps import StepTrial


@pytest.mark.parametrize(
    ("stretches", "costs", "on"),
    [
        ([1000.0], Costs(2.0, 499.0), True),
        ([1000.0], Costs(2.0, 501.0), False),
        ([500.0, 500.0], Costs(2.0, 249.0), True),  # made twice
        ([500.0, 500.0], Costs(2.0, 251.0), False),
        ([1e9], Costs(1.0, 0.0), False),  # no gain, no code
        ([1e9], Costs(0.9, 0.0), False),
        ([1e9], Costs(1.09, 0.0, True), False),  # about a tie
        ([1e9], Costs(1.1, 1.0, True), True),
        ([], Costs(), False),
        ([1.05 * COMPILE_S / (1 - 1 / GAIN)], Costs(), True),
        ([0.95 * COMPILE_S / (1 - 1 / GAIN)], Costs(), False),
    ],
)
def test_it_pays_where_it_saves_more_than_it_takes(stretches, costs, on):
    choice = decide(stretches, costs)
    assert choice.on is on
    assert ("measured" if costs.measured else "taken to be") in choice.reason


@pytest.fixture
def training(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "LEAST_PIXELS", 0.0)

    def build(**options):
        return prepare(make_config(FinetuneConfig, {**quick, "store": str(tmp_path), **options}), quiet=True)

    return build


@pytest.fixture
def slow(monkeypatch):
    """Steps of so many seconds a picture, as far as a stopwatch tells."""
    return lambda seconds: monkeypatch.setattr(
        StepTrial, "seconds", lambda trial, ways: None if seconds is None else dict.fromkeys(ways, seconds)
    )


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that brings what it is said to; returns how often it was called."""
    calls = []

    def says(gain, compile_s=1.0):
        def measure(trial, way, batch_size):
            calls.append(batch_size)
            if gain is not None:
                name = compiling._name(trial, way)
                trial.memory.remember({f"{name} gain": gain, f"{name} compile_s": compile_s})

        monkeypatch.setattr(compiling, "measure_compiling", measure)
        return calls

    return says


def test_what_is_asked_for_is_done(training):
    assert choose_compile(training(compile="on")).on
    assert not choose_compile(training(compile="off")).on


def test_a_short_run_is_not_compiled_and_nothing_is_tried(training, slow, compiler):
    slow(1e-6)
    calls = compiler(2.0)
    choice = choose_compile(training(compile="auto"))
    assert not choice.on
    assert "taken to be" in choice.reason
    assert calls == []


@pytest.mark.parametrize(("gain", "on"), [(2.0, True), (0.9, False), (None, False)])
def test_a_long_run_is_compiled_where_measuring_confirms_it(training, slow, compiler, monkeypatch, gain, on):
    slow(100.0)
    calls = compiler(gain)
    run = training(compile="auto")
    assert choose_compile(run, measure=False).on  # by what is taken for granted, in a plan
    assert calls == []
    assert choose_compile(run).on is on
    assert calls == [run.data.batch_size]
    monkeypatch.setattr(timings, "_SESSION", {})  # as in the next process
    assert choose_compile(run).on is on
    assert len(calls) == (2 if gain is None else 1)


def test_of_a_short_run_nothing_is_timed(training, monkeypatch):
    monkeypatch.setattr(compiling, "LEAST_PIXELS", 1e9)
    monkeypatch.setattr(StepTrial, "seconds", None)
    choice = choose_compile(training(compile="auto"))
    assert (choice.on, choice.reason) == (False, "the run is too short to pay for it")
    assert choose_compile(training(compile="on")).on


def test_a_busy_machine_a_frozen_backbone_and_several_processes(training, slow):
    slow(None)
    assert "too busy" in choose_compile(training(compile="auto")).reason
    slow(100.0)
    run = training(compile="auto", phases="probe", probe="sgd")
    assert choose_compile(run).reason == "no phase trains the backbone"
    several = dataclasses.replace(run, config=dataclasses.replace(run.config, devices=2, compile="on"))
    assert not choose_compile(several).on
    assert choose_compile(several).reason == "several processes"


def test_each_phase_and_size_has_code_of_its_own(training):
    run = training(phases="gradual", epochs=4, train_size="16,32", image_size=32, probe_epochs=None)
    seconds = compiled_seconds(run, 1.0)
    steps = run.plan.steps_per_epoch
    quarter = steps * 0.25
    epochs = sum(phase.epochs for phase in run.phases)
    assert epochs == 4
    assert sum(seconds) == pytest.approx(2 * quarter + 2 * steps)
    assert len(seconds) == len(run.phases) - 1  # an epoch each here


def test_measuring_compiles_a_copy_and_remembers(training, monkeypatch, caplog):
    run = training(compile="auto")
    trial = StepTrial(run.module, 4, "cpu")
    way = compiling.Way("32", "channels_last")
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **options: real(network, backend="aot_eager", **options))
    monkeypatch.setattr(
        compiling, "time_ways", lambda ways: [way() or number for number, way in zip((3.0, 2.0), ways, strict=True)]
    )
    state, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    compiling.measure_compiling(trial, way, 4)
    numbers = trial.memory.recall()
    assert numbers[f"{compiling._name(trial, way)} gain"] == 1.5
    assert numbers[f"{compiling._name(trial, way)} compile_s"] > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(before[name].equal(tensor) for name, tensor in run.module.state_dict().items())
    assert run.module.compiled is None
    monkeypatch.setattr(torch, "compile", lambda *args, **options: 1 / 0)
    other = StepTrial(run.module, 8, "cpu")
    with caplog.at_level(logging.WARNING, "transferkit"):
        compiling.measure_compiling(other, way, 8)
    assert f"{compiling._name(other, way)} gain" not in other.memory.recall()
    messages = [record.getMessage() for record in caplog.records if record.name == "transferkit"]
    assert messages == ["not compiled (ZeroDivisionError: division by zero); going on in eager mode"]
