"""`selftest --resume`: SIGKILL at random points, and a comparison that can fail."""

import json
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from transferkit.cli.main import main
from transferkit.core.errors import CheckpointError
from transferkit.options.fields import make_config
from transferkit.options.training import SelftestConfig
from transferkit.training.checks import selftest
from transferkit.training.checks.selftest import (
    KINDS,
    check_resume,
    compare_runs,
    compare_traces,
    draw_kills,
    read_trace,
)


def small(**options):
    return make_config(SelftestConfig, {
        "resume": True, "data": "random", "backbone": "test_resnet", "weights": "random", "quiet": True, **options,
    })  # fmt: skip


@pytest.mark.slow
def test_killed_runs_end_as_the_undisturbed_one():  # fault 47, fault 52
    kills = check_resume(small(kills=3))
    assert [kill.kind for kill in kills] == list(KINDS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_on_the_sample(capsys):  # fault 52
    assert main(["selftest", "--resume", "--kills", "20"]) == 0
    assert "20 of 20 equal the undisturbed run" in capsys.readouterr().out


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    root = tmp_path_factory.mktemp("selftest")
    options = selftest._options(small(), root)
    selftest._run({**options, "out": str(root / "run")}, root / "run.trace", None)
    return root / "run"


@pytest.fixture
def copy(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    shutil.copy(reference.with_suffix(".trace"), tmp_path / "run.trace")
    return tmp_path / "run"


def test_the_run_has_what_is_hard_to_resume(reference):
    plan = json.loads((reference / "plan.json").read_text(encoding="utf-8"))
    assert len(plan["phases"]) > 2
    assert plan["phases"][-1]["schedule"]["name"] == "plateau"
    lines, differing = read_trace(reference.with_suffix(".trace"))
    assert len(lines) == plan["epochs"] * plan["steps_per_epoch"]
    assert differing == []


def test_points_cover_every_kind(reference):
    kills = draw_kills(reference, 30, seed=1, step_s=0.5)
    phases = [row["phase"] for row in selftest._rows(reference)]
    last = {epoch for epoch in range(len(phases) - 1) if phases[epoch] != phases[epoch + 1]}
    assert [kill.kind for kill in kills] == list(KINDS) * 10
    for kill in kills:
        assert 0 <= kill.delay < 0.5
        if kill.kind == "phase boundary":
            assert (kill.epoch in last and kill.batch is None) or (kill.epoch - 1 in last and kill.batch == 0)
        elif kill.kind == "epoch end":
            assert kill.epoch not in last
            assert kill.batch is None
        else:
            assert kill.batch is not None
    assert len(set(kills)) == 30
    assert kills != draw_kills(reference, 30, seed=2, step_s=0.5)


def test_equal_runs_are_equal(reference, copy):
    assert compare_runs(copy, reference) == []
    assert compare_traces(copy.with_suffix(".trace"), reference.with_suffix(".trace")) == []


def test_one_bit_of_a_weight_is_seen(reference, copy):
    state = load_file(copy / "model.safetensors")
    name = "head.linear.weight"
    state[name].view(-1)[0] += 1e-7
    save_file(state, copy / "model.safetensors")
    assert compare_runs(copy, reference) == [f"1 of {len(state)} tensors differ, such as {name}"]


def test_other_figures_are_seen(reference, copy):
    history = (copy / "history.csv").read_text(encoding="utf-8").splitlines()
    history[2] = history[2].replace(",", ",1", 1)
    (copy / "history.csv").write_text("\n".join(history) + "\n", encoding="utf-8")
    metrics = json.loads((copy / "metrics.json").read_text(encoding="utf-8"))
    metrics["val"]["acc"] += 1e-9
    (copy / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert compare_runs(copy, reference) == ["history.csv differs", "metrics.json differs"]


def test_times_do_not_count(reference, copy):
    metrics = json.loads((copy / "metrics.json").read_text(encoding="utf-8"))
    metrics["time_s"] += 1
    metrics["phases"][0]["time_s"] += 1
    (copy / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert compare_runs(copy, reference) == []


def test_other_batches_are_seen(reference, copy):
    trace = copy.with_suffix(".trace")
    lines = trace.read_text(encoding="utf-8").splitlines()
    values = json.loads(lines[3])
    values["lrs"]["head.decay"] *= 1.0000001
    trace.write_text("\n".join([*lines[:3], json.dumps(values), *lines[4:]]) + "\n", encoding="utf-8")
    assert compare_traces(trace, reference.with_suffix(".trace")) == [
        f"1 of {len(lines)} batches differ in pictures or LR, first ['{values['at']}']"
    ]
    # A repetition that differs from the first time is seen even where one of them is right.
    trace.write_text("\n".join([*lines, json.dumps(values)]) + "\n", encoding="utf-8")
    assert compare_traces(trace, reference.with_suffix(".trace")) == [
        f"batch {values['at']} was not repeated as it was"
    ]
    # a line that a killed process left unfinished
    trace.write_text("\n".join([*lines, '{"at": "9']) + "\n", encoding="utf-8")
    assert compare_traces(trace, reference.with_suffix(".trace")) == []


def test_a_difference_ends_the_verb(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "compare_runs", lambda *_: ["1 of 2 tensors differ, such as a"])
    monkeypatch.setattr(selftest, "_run", lambda options, trace, kill: None)
    monkeypatch.setattr(selftest, "draw_kills", lambda *_, **__: [selftest.Kill("mid-epoch", 1, 2, 0.01)])
    monkeypatch.setattr(selftest, "compare_traces", lambda *_: [])
    with pytest.raises(CheckpointError, match=r"1 difference\(s\) .* killed at epoch 2, batch 3, after 10 ms: 1 of 2"):
        check_resume(small(kills=1))


def test_a_run_that_cannot_be_started_says_why(tmp_path):
    with pytest.raises(CheckpointError, match="a run could not be started: DataError: --data nowhere does not exist"):
        check_resume(small(data="nowhere", kills=1))


def test_nothing_to_test(capsys):
    assert main(["selftest"]) == 2
    assert "nothing to test - pass --resume" in capsys.readouterr().err


def test_the_kill_is_a_kill(tmp_path):
    """The process is ended by SIGKILL, not by an exception that could clean up."""
    options = selftest._options(small(), tmp_path)
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    trace = tmp_path / "run.trace"
    process = context.Process(
        target=selftest._child,
        args=({**options, "out": str(tmp_path / "run")}, trace, selftest.Kill("mid-epoch", 1, 1, 0.0), trace),
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run" / "metrics.json").exists()
