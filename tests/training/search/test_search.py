"""The search: trials on disk that several processes share, what they leave, and what stops them."""

import csv
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError, ConfigError, DataError, Interrupted, StorageError, TrainingError
from transferkit.models.backbones.interface import Backbone
from transferkit.options.fields import make_config
from transferkit.options.training import SearchConfig
from transferkit.training.finetune import Run, finetune
from transferkit.training.search import search as module
from transferkit.training.search.plots import SearchBar, TrialRow, best_of, plot_search
from transferkit.training.search.search import SearchResult, print_search, search
from transferkit.training.search.space import Monitor, plan_search
from transferkit.training.search.study import TRIES, Study

ACC = Monitor("val_acc", higher_is_better=True, unit="share")
SPACE = {"lr": {"low": 1e-5, "high": 1e-1, "log": True}, "augment": ["none", "light"]}


# Children of a process that has loaded everything and computed nothing: quick to start, and safe to fork.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["transferkit.training.search.search", "optuna"])


def table(path):
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rows_of(out):
    return table(out / "trials.csv")


def closeness(lr):
    """A value for a learning rate: best at 1e-3."""
    return 1.0 / (1.0 + (np.log10(lr) + 3.0) ** 2)


class Fake:
    """Stands for `finetune`: notes what it is called with, and answers at once."""

    def __init__(self, value=lambda options: closeness(options["lr"])):
        self.value, self.calls = value, []

    def __call__(self, *, callbacks, measured, loggers, **options):
        assert measured == ("val",)
        self.calls.append(options)
        run = Path(options["out"])
        run.mkdir(parents=True)
        for name in ("history.csv", "model.safetensors", "model.json", "checkpoints/best.ckpt"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("x", encoding="utf-8")
        value = self.value(options)
        metrics = {"val": dict.fromkeys(("acc", "balanced_acc", "ece", "loss"), value) | {"acc_top5": None}}
        (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        return Run(run, metrics)


@pytest.fixture
def fake(monkeypatch):
    """Put a fake in the place of `finetune`."""

    def install(**options):
        made = Fake(**options)
        monkeypatch.setattr(module, "finetune", made)
        return made

    return install


def run_search(options, *, sampler="tpe", timeout=None, out=None, **more):
    """Search as the verb does."""
    verb = {"search_sampler": sampler, "search_timeout": timeout, "out": out and str(out), **more}
    return search(make_config(SearchConfig, {**options, **verb}), options)


def run(out, **more):
    options = {"data": "sample", "epochs": 3, "monitor": "val_acc", **more.pop("options", {})}
    return run_search(options, **{"out": out, "space": SPACE, "quiet": True, **more})


# ---- real trials ------------------------------------------------------------------------------------------------


@pytest.fixture
def short(quick):
    """Options of trials that take a second."""
    others = {key: value for key, value in quick.items() if key not in ("probe_epochs", "augment")}
    return {**others, "epochs": 1, "monitor": "val_acc"}


def test_trials_are_runs_and_the_recipe_repeats_the_best(short, tmp_path, real_figures):
    space = {"lr": {"low": 1e-3, "high": 1e-2, "log": True}, "augment": ["none", "light"]}
    out = tmp_path / "study"
    result = run_search(short, trials=3, sampler="random", space=space, out=out, quiet=True)

    rows = rows_of(out)
    assert list(rows[0]) == ["number", "state", "value", "seconds", "lr", "augment", "note"]
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert {row["state"] for row in rows} == {"finished"}
    assert all(1e-3 <= float(row["lr"]) <= 1e-2 and row["augment"] in ("none", "light") for row in rows)
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert result.value == max(float(row["value"]) for row in rows)
    for row in rows:
        trial = out / "trials" / row["number"]
        metrics = json.loads((trial / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["val"]["acc"] == float(row["value"])
        assert "test" not in metrics
        assert {row["split"] for row in read_csv(trial / "predictions.csv")} == {"val"}  # test is not looked at
        assert (trial / "history.csv").exists() and not (trial / "checkpoints").exists()
        assert (trial / "model.safetensors").exists() is (int(row["number"]) == result.number)
    assert (out / "importance.png").read_bytes().startswith(b"\x89PNG")

    text = (out / "best.yaml").read_text(encoding="utf-8")
    assert f"trial {result.number}, val_acc {result.value:.6g}" in text
    assert f"#   transferkit finetune --config {out / 'best.yaml'}" in text
    recipe = yaml.safe_load(text)
    assert recipe["data"] == short["data"] and recipe["lr"] == result.params["lr"]
    assert not {"out", "quiet", "store"} & set(recipe)
    again = finetune(**recipe, out=str(tmp_path / "again"), quiet=True)
    assert again.metrics["val"]["acc"] == result.value
    assert "test" in again.metrics


def test_a_solved_probe_is_epoch_0(short, tmp_path):
    space = {"lr": [1e-3, 2e-3]}
    run_search({**short, "phases": "probe-finetune"}, trials=1, space=space, out=tmp_path / "study", quiet=True)
    (trial,) = load(tmp_path / "study").trials
    metrics = json.loads((tmp_path / "study" / "trials" / "0" / "metrics.json").read_text(encoding="utf-8"))
    solved, trained = metrics["phases"]
    assert trial.intermediate_values == {0: solved["val_acc"], 1: trained["val_acc"]}
    assert trial.value == pytest.approx(max(trial.intermediate_values.values()))


def test_each_trial_is_a_run_of_its_own_for_loggers(short, tmp_path):
    space = {"lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    out = tmp_path / "study"
    result = run_search({**short, "phases": "finetune", "logger": "csv"}, trials=2, space=space, out=out, quiet=True)
    for row in result.trials:
        folder = out / "trials" / str(row.number) / "csv"
        lr = yaml.safe_load((folder / "hparams.yaml").read_text(encoding="utf-8"))["lr"]
        (epoch, figures) = table(folder / "metrics.csv")
        assert lr == row.params["lr"] and float(epoch["val_acc"]) == pytest.approx(row.value)
        assert figures["final/val_acc"] and "final/test_acc" not in figures
    assert "logger" not in yaml.safe_load((out / "best.yaml").read_text(encoding="utf-8"))


def test_heads_on_cached_features_are_no_runs_to_log(short, tmp_path):
    options = {**short, "phases": "probe", "probe": "sgd", "logger": "csv"}
    with pytest.raises(ConfigError, match="--logger follows runs, and these trials are none"):
        run_search(options, trials=1, out=tmp_path / "study", quiet=True)
    assert not (tmp_path / "study").exists()


def load(out):
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    return optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(out / "study.log"))))


@pytest.mark.parametrize("prune", [True, False])
def test_a_hopeless_trial_is_pruned(short, tmp_path, monkeypatch, prune):
    """Five trials that were always right, then one that cannot learn."""
    calls = []

    def trial(*, callbacks, measured, **options):
        calls.append(options)
        if len(calls) > 5:
            return finetune(callbacks=callbacks, measured=measured, **options)
        for epoch in (1, 2, 3):
            callbacks[0].trial.report(1.0, epoch)
        run = Path(options["out"])
        run.mkdir(parents=True)
        return Run(run, {"val": {"acc": 1.0}})

    monkeypatch.setattr(module, "finetune", trial)
    out, space = tmp_path / "study", {"lr": {"low": 1e-9, "high": 2e-9}}
    options = {**short, "epochs": 3, "phases": "finetune"}
    result = run_search(options, trials=6, prune=prune, space=space, out=out, quiet=True)
    last = result.trials[-1]
    assert last.state == ("pruned" if prune else "finished")
    trial = out / "trials" / "5"
    history = table(trial / "history.csv")
    assert len(history) == (1 if prune else 3)
    assert last.value == pytest.approx(max(float(row["val_acc"]) for row in history))
    assert not (trial / "checkpoints").exists() and not (trial / "model.safetensors").exists()
    assert result.number == 0  # of equal ones the first; a pruned trial is never the best


def test_the_backbone_runs_once_for_all_heads(short, tmp_path, monkeypatch):
    forwards, before, train_head = [0], [], module.train_head

    def count(layer, inputs):
        forwards[0] += isinstance(layer, Backbone)

    def train(head, loss, rows, *rest):
        before.append(forwards[0])
        assert rows[0].shape[1] == head.linear.in_features
        train_head(head, loss, rows, *rest)

    monkeypatch.setattr(module, "train_head", train)
    options = {**short, "phases": "probe", "backbone": "transferkit/mini", "weights": "bundled", "epochs": 5,
               "monitor": "auto"}  # fmt: skip
    out = tmp_path / "study"
    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        first = run_search(options, trials=6, out=out, quiet=True)
        assert before[0] > 0 and before == [before[0]] * 6  # as many before the first head as before the last one
    finally:
        hook.remove()
    assert len({row.params["probe_lr"] for row in first.trials}) == 6
    assert len({row.value for row in first.trials}) > 1
    assert not list((out / "trials").iterdir())
    recipe = yaml.safe_load((out / "best.yaml").read_text(encoding="utf-8"))
    assert recipe["phases"] == "probe" and recipe["probe"] == "sgd" and recipe["probe_lr"] == first.params["probe_lr"]
    phases = finetune(**recipe, out=str(tmp_path / "run"), quiet=True).metrics["phases"]
    assert [(phase["name"], phase["epochs"]) for phase in phases] == [("probe", 5)]


@pytest.mark.parametrize(("head", "monitor"), [("linear", "val_loss"), ("mlp", "val_balanced_acc")])
def test_a_head_on_cached_features_is_the_head_of_a_run(short, tmp_path, head, monitor):
    """Without augmented views and clipping, finetune takes the same steps."""
    options = {**short, "phases": "probe", "backbone": "transferkit/mini", "weights": "bundled", "augment": "none",
               "epochs": 3, "monitor": monitor, "head": head}  # fmt: skip
    space = {"lr": [3e-3, 1e-2], "weight_decay": [0.0, 0.1]}
    result = run_search(options, trials=1, space=space, out=tmp_path / "study", quiet=True)
    done = finetune(**options, **result.params, probe="sgd", clip=None, out=str(tmp_path / "run"))
    history = table(done.path / "history.csv")
    assert result.value == pytest.approx(float(history[-1][monitor]), rel=1e-3)


# ---- one study, several calls -----------------------------------------------------------------------------------


def test_the_same_command_goes_on_and_repeats_nothing(tmp_path, fake):
    first = fake()
    run(tmp_path / "study", trials=3)
    before = rows_of(tmp_path / "study")
    second = fake()
    result = run(tmp_path / "study", trials=5)
    assert (len(first.calls), len(second.calls)) == (3, 2)
    assert rows_of(tmp_path / "study")[:3] == before
    assert len({row.params["lr"] for row in result.trials}) == 5
    third = fake()
    assert run(tmp_path / "study", trials=5).trials == result.trials
    assert third.calls == []


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_follow_from_the_seed(tmp_path, fake, sampler):
    fake()
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = run(tmp_path / name, trials=4, sampler=sampler, options={"seed": seed})
        drawn[name] = [row.params["lr"] for row in result.trials]
    assert drawn["a"] == drawn["b"]
    assert not set(drawn["a"]) & set(drawn["c"])  # the next seed does not draw the same a trial later


def test_random_draws_cover_the_space(tmp_path, fake):
    fake()
    rows = run(tmp_path / "study", trials=30, sampler="random").trials
    exponents = np.log10([row.params["lr"] for row in rows])
    counts, _ = np.histogram(exponents, bins=4, range=(-5, -1))  # log: every order of magnitude alike
    assert counts.sum() == 30 and counts.min() >= 2
    assert {row.params["augment"] for row in rows} == {"none", "light"}


def test_tpe_goes_where_it_is_good(tmp_path, fake):
    """Against random draws on a narrow peak, a tenth of the space."""
    fake(value=lambda options: float(np.exp(-(((np.log10(options["lr"]) + 3.7) / 0.25) ** 2))))
    reached = {}
    for sampler in ("tpe", "random"):
        rows = run(tmp_path / sampler, trials=40, sampler=sampler, space={"lr": SPACE["lr"]}).trials
        reached[sampler] = float(np.mean([row.value for row in rows[20:]]))
    assert reached["tpe"] > 2 * reached["random"]


def test_importance_names_what_matters(tmp_path, fake):
    fake()
    result = run(tmp_path / "study", trials=12, sampler="random")
    assert set(result.importance) == {"lr", "augment"}
    assert result.importance["lr"] > 0.7  # all there is to the fake
    assert sum(result.importance.values()) == pytest.approx(1.0)
    assert run(tmp_path / "few", trials=3).importance == {}


@pytest.mark.parametrize(("monitor", "best"), [("val_loss", min), ("val_balanced_acc", max), ("val_ece", min)])
def test_any_figure_of_the_task_in_its_direction(tmp_path, fake, monitor, best):
    fake()
    result = run(tmp_path / "study", trials=4, options={"monitor": monitor})
    assert result.value == best(row.value for row in result.trials)
    assert load(tmp_path / "study").direction.name == {min: "MINIMIZE", max: "MAXIMIZE"}[best]


def test_a_figure_that_these_pictures_do_not_have_ends_the_search(tmp_path, fake):
    fake()
    with pytest.raises(DataError, match="val_acc_top5 has no value for these pictures - pass another --monitor"):
        run(tmp_path / "study", trials=1, options={"monitor": "val_acc_top5"})


def test_only_the_best_keeps_its_model(tmp_path, fake):
    values = iter([0.5, 0.9, 0.7])
    fake(value=lambda options: next(values))
    run(tmp_path / "study", trials=3)
    models = {path.parent.name for path in (tmp_path / "study" / "trials").glob("*/model.safetensors")}
    assert models == {"1"}
    assert not list((tmp_path / "study").rglob("checkpoints"))
    metrics = json.loads((tmp_path / "study" / "trials" / "1" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["val"]["acc"] == 0.9


def work(out, log, ready, seconds):
    """What another process does: a search whose trials take a while and write down who ran them."""

    def trial(*, callbacks, measured, **options):
        run = Path(options["out"])
        run.mkdir(parents=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()} {run.name} {options['lr']!r}\n")
        time.sleep(seconds)
        (run / "metrics.json").write_text("{}", encoding="utf-8")
        return Run(run, {"val": {"acc": 0.5}})

    module.finetune = trial
    (ready / str(os.getpid())).touch()
    while not (ready / "go").exists():
        time.sleep(0.01)
    run_search({"data": "sample", "epochs": 3}, trials=12, space=SPACE, out=out, quiet=True)


def start(tmp_path, seconds):
    (tmp_path / "ready").mkdir(exist_ok=True)
    process = FORKS.Process(target=work, args=(tmp_path / "study", tmp_path / "log", tmp_path / "ready", seconds))
    process.start()
    return process


def wait_for(condition, process):
    while not condition():
        assert process.exitcode is None
        time.sleep(0.02)


def study_of(tmp_path):
    plan = plan_search({"data": "sample", "monitor": "val_acc"}, SPACE)
    return Study(tmp_path / "study", plan, sampler="random", prune=True)


def test_trials_that_are_claimed_count_and_are_nobody_elses(tmp_path):
    """Two holders of one study, as two processes are: a lock belongs to who opened it, not to the process."""
    one, two = study_of(tmp_path), study_of(tmp_path)
    with one.claimed(2) as first, two.claimed(2) as second:
        assert (first[0].number, second[0].number) == (0, 1)
        assert first[1]["lr"] != second[1]["lr"]
        with one.claimed(2) as third:
            assert third is None
        assert [row.state for row in two.publish().trials] == ["running", "running"]
        one.tell(first[0], value=0.5)
        two.tell(second[0], value=0.6)
    assert one.publish().trials == two.publish().trials
    assert one.publish().number == 1
    with two.claimed(3) as fourth:
        assert fourth[0].number == 2
    assert [row.state for row in one.publish().trials] == ["finished", "finished", "stopped"]


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    workers = [start(tmp_path, seconds=0.15) for _ in range(2)]
    for worker in workers:
        wait_for((tmp_path / "ready" / str(worker.pid)).exists, worker)
    (tmp_path / "ready" / "go").touch()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    done = [line.split() for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    rows = rows_of(tmp_path / "study")
    assert len(rows) == len(done) == 12  # exactly, and none of them twice
    assert {pid for pid, _, _ in done} == {str(worker.pid) for worker in workers}
    assert {number for _, number, _ in done} == {str(number) for number in range(12)}
    assert len({row["lr"] for row in rows}) == 12
    assert {row["state"] for row in rows} == {"finished"}


@pytest.mark.slow
def test_a_trial_whose_process_was_killed_is_done_again(tmp_path, fake):
    worker = start(tmp_path, seconds=600)
    (tmp_path / "ready" / "go").touch()
    wait_for((tmp_path / "log").exists, worker)
    live = fake()
    run(tmp_path / "study", trials=1)
    assert live.calls == []  # another process is at it
    assert rows_of(tmp_path / "study")[0]["state"] == "running"
    worker.kill()
    worker.join()
    result = run(tmp_path / "study", trials=3)
    assert [row.state for row in result.trials] == ["stopped", "finished", "finished", "finished"]
    assert "ended in mid-run" in result.trials[0].note
    assert result.trials[1].params == result.trials[0].params
    assert len(live.calls) == 3


def test_a_trial_that_kills_its_process_every_time_has_failed(tmp_path):
    study = study_of(tmp_path)
    drawn = []
    for _ in range(TRIES):
        with study.claimed(1) as claim:
            drawn.append(claim[1])
    assert drawn == [drawn[0]] * TRIES
    with study.claimed(1) as claim:
        assert claim is None
    states = [row.state for row in study.publish().trials]
    assert states == ["stopped"] * (TRIES - 1) + ["failed"]


# ---- what goes wrong --------------------------------------------------------------------------------------------


def raising(error, at):
    """A value that raises at one call, from 0."""
    calls = []

    def value(options):
        calls.append(options)
        if len(calls) - 1 == at:
            raise error
        return closeness(options["lr"])

    return value


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("val_loss is nan in epoch 0 - try a smaller --lr"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_a_failing_trial_does_not_end_the_search(tmp_path, fake, error):
    fake(value=raising(error, at=1))
    result = run(tmp_path / "study", trials=3)
    assert [row.state for row in result.trials] == ["finished", "failed", "finished"]
    row = rows_of(tmp_path / "study")[1]
    assert row["value"] == "" and row["note"] == " ".join(str(error).split())
    assert len(rows_of(tmp_path / "study")) == 3


@pytest.mark.parametrize(
    "error", [ConfigError("a"), DataError("b"), StorageError("c"), RuntimeError("a bug"), KeyError("another")]
)
def test_what_is_not_the_trials_fault_stops_the_search(tmp_path, fake, error):
    fake(value=raising(error, at=1))
    with pytest.raises(type(error)) as caught:
        run(tmp_path / "study", trials=3)
    assert caught.value is error and error.__cause__ is None
    assert [row["state"] for row in rows_of(tmp_path / "study")] == ["finished", "stopped"]
    fake()
    result = run(tmp_path / "study", trials=3)
    assert [row.state for row in result.trials] == ["finished", "stopped", "finished", "finished"]


@pytest.mark.parametrize(
    ("stop", "status"),
    [(Interrupted("x", signal.SIGTERM), 143), (KeyboardInterrupt(), 130), (SystemExit(143), 143)],
)
def test_a_signal_says_how_to_go_on(tmp_path, fake, stop, status):
    fake(value=raising(stop, at=2))
    with pytest.raises(Interrupted, match=r"after 2 of 4 trials - run the same command, with --out .*study, to go on"):
        try:
            run(tmp_path / "study", trials=4)
        except Interrupted as error:
            assert error.exit_status == status
            raise
    again = fake()
    result = run(tmp_path / "study", trials=4)
    assert len(again.calls) == 2
    assert again.calls[0]["lr"] == result.trials[2].params["lr"]  # the one that was stopped


def test_no_trial_at_all_is_an_error(tmp_path, fake):
    def value(options):
        raise TrainingError("diverged")

    fake(value=value)
    with pytest.raises(TrainingError, match="no trial finished; the last one: diverged"):
        run(tmp_path / "study", trials=2)
    assert not (tmp_path / "study" / "best.yaml").exists()
    assert (tmp_path / "study" / "importance.png").exists()


def test_time_is_up_between_trials(tmp_path, fake):
    def value(options):
        time.sleep(0.1)
        return 0.5

    fake(value=value)
    assert len(run(tmp_path / "study", trials=5, timeout=0.05).trials) <= 1


def test_without_a_validation_split_there_is_nothing_to_compare(short, tmp_path, fake, folder):
    options = {**short, "data": str(folder / "train"), "val_split": 0.0, "test_split": 0.0, "phases": "finetune"}
    for more in ({"phases": "probe"}, {}):
        with pytest.raises(DataError, match="compares trials on the validation split, and there is none"):
            run_search({**options, **more}, trials=1, out=tmp_path / str(len(more)), quiet=True)
    history = tmp_path / "0" / "trials" / "0" / "history.csv"
    assert not history.exists()  # told before the first epoch, not after the last one


def test_optuna_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'transferkit\[search\]'"):
        run(tmp_path / "study")
    assert not (tmp_path / "study").exists()


# ---- the directory ----------------------------------------------------------------------------------------------


def test_another_study_is_refused(tmp_path, fake):
    fake()
    run(tmp_path / "study", trials=1)
    with pytest.raises(CheckpointError, match=r"holds a study of other options: epochs was 3, is now 4"):
        run(tmp_path / "study", trials=2, options={"epochs": 4})
    with pytest.raises(CheckpointError, match=r"space of augment was \['none', 'light'\], is now 'not searched'"):
        run(tmp_path / "study", trials=2, space={"lr": SPACE["lr"]})
    run(tmp_path / "study", trials=2, options={"workers": 0})


def test_a_directory_with_something_else_is_refused(tmp_path, fake):
    fake()
    (tmp_path / "thesis.tex").write_text("dear", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is not empty and holds no study \(no study.log\)"):
        run(tmp_path)
    with pytest.raises(CheckpointError, match="is a file, expected a directory"):
        run(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_half_a_line_at_the_end_of_the_study_is_cut_off(tmp_path, fake):
    fake()
    run(tmp_path / "study", trials=2)
    before = rows_of(tmp_path / "study")
    with (tmp_path / "study" / "study.log").open("a", encoding="utf-8") as stream:
        stream.write('{"op_code":4,"worker_id":"x","stu')
    assert len(run(tmp_path / "study", trials=3).trials) == 3
    assert rows_of(tmp_path / "study")[:2] == before


def test_a_damaged_study_is_refused(tmp_path, fake):
    fake()
    run(tmp_path / "study", trials=1)
    log = tmp_path / "study" / "study.log"
    lines = log.read_text(encoding="utf-8").splitlines()
    log.write_text("\n".join([lines[0], "not JSON", *lines[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"study.log: is damaged .* - give another --out"):
        run(tmp_path / "study", trials=2)


def test_a_full_disk_is_a_storage_error(tmp_path, fake, monkeypatch):
    from optuna.storages.journal import JournalFileBackend

    fake()
    run(tmp_path / "study", trials=1)

    def full(self, logs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(StorageError, match=r"study.log': No space left on device"):
        run(tmp_path / "study", trials=2)


# ---- the verb and what is shown ---------------------------------------------------------------------------------


def test_the_verb_passes_on_what_was_given(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = fake(value=lambda options: 0.75)
    options = {
        "data": "sample", "augment": "heavy", "trials": 2, "search_sampler": "random", "epochs": 3,
        "sampler": "balanced",
    }  # fmt: skip
    result = search(make_config(SearchConfig, options), options)
    assert str(result.path) == "runs/sample-transferkit_mini-search"  # no number: the same command goes on
    assert set(result.params) == {"lr", "weight_decay", "layer_decay", "phases"}
    calls = [(call["augment"], call["sampler"], call["quiet"]) for call in made.calls]
    assert calls == [("heavy", "balanced", True)] * 2
    shown = capsys.readouterr().out
    recipe = "finetune --config runs/sample-transferkit_mini-search/best"
    assert all(part in shown for part in ("val_loss 0.75", "2 finished", "chosen   on val", recipe))


def test_quiet_is_quiet(tmp_path, fake, capfd):
    fake()
    run(tmp_path / "study", trials=2)
    assert capfd.readouterr() == ("", "")


def test_each_trial_is_a_line(capsys):
    console = Console(file=sys.stdout, force_terminal=True, width=160)
    rows = [TrialRow(0, "finished", 0.5, 2.0, {"lr": 0.00123456, "schedule": {"name": "sgdr"}}),
            TrialRow(1, "failed", None, 1.0, {"lr": 0.1}, "diverged")]  # fmt: skip
    with SearchBar(console, 4, ACC) as bar:
        bar.epoch(1, 3, 0.25)
        bar.show(rows, 0)
        bar.show(rows, 1)
    shown = capsys.readouterr().out
    assert 'trial 0   finished  50.0%    2.0 s  lr 0.00123  schedule {"name": "sgdr"}' in shown
    assert "trial 1   failed" in shown
    assert "best val_acc 50.0% (trial 0)" in shown


@pytest.mark.parametrize("monitor", [ACC, Monitor("val_loss", False, "nats")])
def test_every_state_can_be_drawn(tmp_path, monitor, real_figures):
    rows = [
        TrialRow(0, "finished", 0.5, 1.0, {"lr": 0.1}),
        TrialRow(1, "pruned", 0.2, 1.0, {"lr": 0.2}),
        TrialRow(2, "failed", None, 1.0, {"lr": 0.3}),
        TrialRow(3, "stopped", None, None, {}),
        TrialRow(4, "finished", 0.6, 1.0, {"lr": 0.4}),
        TrialRow(5, "running", None, None, {"lr": 0.5}),
    ]
    for number, (shown, importance) in enumerate(((rows, {"lr": 0.9, "augment": 0.1}), (rows[1:4], {}), ([], {}))):
        plot_search(shown, importance, tmp_path / f"{number}.png", monitor=monitor)
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    assert best_of(rows, monitor).number == (4 if monitor is ACC else 0)
    assert best_of(rows[1:4], monitor) is None


def test_the_table_counts_trials_and_sorts_options(capsys):
    trials = (
        TrialRow(0, "finished", 0.5, 1.0, {}),
        TrialRow(1, "pruned", 0.2, 61.0, {}),
        TrialRow(2, "stopped", None, 9.0, {}),
    )
    best = {"lr": 0.1234567, "augment": "none"}
    plan = plan_search({"data": "sample"}, SPACE)
    print_search(SearchResult(Path("out"), 0, 0.5, best, {"lr": 0.2, "augment": 0.8}, trials), plan)
    shown = capsys.readouterr().out
    assert shown.index("augment") < shown.index("lr")
    assert "0.123" in shown and "80%" in shown
    assert "1 finished, 1 pruned; 1 min 11 s of work" in shown


# ---- backbones in the space --------------------------------------------------------------------------------------


def test_features_of_each_backbone_are_extracted_once(folder, tmp_path, monkeypatch):
    extracted, extract = [], module._HeadTrials._extract

    def counting(trials, config):
        extracted.append(config.image_size)
        return extract(trials, config)

    monkeypatch.setattr(module._HeadTrials, "_extract", counting)
    options = {"data": str(folder), "phases": "probe", "weights": "bundled", "epochs": 2,
               "augment": "none", "accelerator": "cpu", "precision": "32", "workers": 0}  # fmt: skip
    small, large = (
        {"backbone": "transferkit/mini", "image_size": 32},
        {"backbone": "transferkit/mini", "image_size": 48},
    )
    space = {"backbone": [small, large], "probe_lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    result = run_search(options, trials=8, space=space, search_sampler="random", out=tmp_path / "study", quiet=True)
    assert sorted(extracted) == [32, 48]
    assert {row.params["backbone"]["image_size"] for row in result.trials} == {32, 48}
    recipe = yaml.safe_load((tmp_path / "study" / "best.yaml").read_text(encoding="utf-8"))
    assert recipe["backbone"] == "transferkit/mini"
    assert recipe["image_size"] == result.params["backbone"]["image_size"]


def test_a_backbone_whose_weights_cannot_be_had_fails_its_trials_alone(short, tmp_path):
    space = {"backbone": [{"backbone": "test_resnet", "weights": "random"},
                          {"backbone": "test_resnet", "weights": str(tmp_path / "gone.safetensors")}]}  # fmt: skip
    options = {key: value for key, value in short.items() if key not in ("backbone", "weights")}
    result = run_search(options, trials=4, space=space, search_sampler="random", out=tmp_path / "study", quiet=True)
    states = {(row.params["backbone"]["weights"] == "random", row.state) for row in result.trials}
    assert (True, "finished") in states
    assert states <= {(True, "finished"), (True, "pruned"), (False, "failed")}
    assert result.params["backbone"]["weights"] == "random"
