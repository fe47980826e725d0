"""Resume continues exactly: weights, history, order and augmentation equal those of an undisturbed run."""

import csv
import errno
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SignalAt

from transferkit.core.errors import CheckpointError, Interrupted, StorageError, TransferkitWarning
from transferkit.machine.device import choose_workers
from transferkit.training.finetune import finetune
from transferkit.training.loop import checkpoints as checkpoint
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.phases import Phase


def rows(run):
    with (run / "history.csv").open(encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(stream)]


def assert_same_result(run, reference):
    assert rows(run) == rows(reference)
    ours, theirs = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []


@pytest.fixture(scope="module")
def options(folder):
    # dropout draws from the global generator, so the generators' state counts too
    return {
        "data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 4,
        "epochs": 2, "probe_epochs": 1, "precision": "32", "accelerator": "cpu", "workers": 0, "quiet": True,
        "augment": "standard", "drop_rate": 0.3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def reference(options, tmp_path_factory):
    return finetune(**options, out=tmp_path_factory.mktemp("reference") / "run").path


def interrupt(out, step, **options):
    """Stop a run in a step, counted from 1."""
    message = r"stopped by SIGTERM; saved .*last\.ckpt - go on with --resume"
    with pytest.raises(Interrupted, match=message) as caught:
        finetune(callbacks=[SignalAt(step)], **options, out=out)
    assert caught.value.exit_status == 143


def test_resume_is_exact_wherever_and_however_often(options, reference, tmp_path):  # fault 47, fault 52, fault 53
    out = tmp_path / "run"
    assert [row["step"] for row in rows(reference)] == ["6", "12", "18"]
    interrupt(out, 3, **options)
    for step in (6, 9, 11, 12, 15):  # 6 is the end of a phase, 12 that of an epoch
        interrupt(out, step, resume=True, quiet=True)
        assert not (out / "metrics.json").exists()
    finetune(out=out, resume=True, quiet=True)
    assert_same_result(out, reference)


def test_the_comparison_can_fail(reference, finished_run):
    with pytest.raises(AssertionError):
        assert_same_result(finished_run, reference)  # without dropout


def test_same_seed_same_result_whatever_the_workers(monkeypatch, options, reference, tmp_path):  # fault 51
    # The number of compute threads changes the order of sums, so it is held.
    threads = choose_workers(0, "cpu")[1]
    monkeypatch.setattr("transferkit.training.setup.choose_workers", lambda workers, _: (workers, threads))
    again = finetune(**{**options, "workers": 2}, out=tmp_path / "run").path
    assert_same_result(again, reference)


def test_a_finished_run_is_left_alone(reference):  # fault 57
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    run = finetune(out=reference, resume=True, quiet=True)
    assert run.metrics["val"]["n"] > 0
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


@pytest.fixture(scope="module")
def stopped(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    interrupt(out, 12, **options)
    return out


@pytest.fixture
def half(stopped, tmp_path):
    """A run that was stopped in the middle of its last phase."""
    return shutil.copytree(stopped, tmp_path / "run")


def test_other_options_are_refused_one_by_one(half):  # fault 54
    with pytest.raises(CheckpointError) as caught:
        finetune(out=half, resume=True, quiet=True, backbone="test_vit", image_size=64)
    assert "backbone was 'test_resnet', is now 'test_vit'" in str(caught.value)
    assert "image_size was 32, is now 64" in str(caught.value)


def test_other_classes_are_refused(half, folder, tmp_path):  # fault 54
    data = tmp_path / "shapes"
    shutil.copytree(folder, data)
    for split in data.iterdir():
        (split / "stripes").rename(split / "zebra")
    config = (half / "config.yaml").read_text(encoding="utf-8").replace(str(folder), str(data))
    (half / "config.yaml").write_text(config, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"classes were .*'stripes'.* are now .*'zebra'"):
        finetune(out=half, resume=True, quiet=True)


def test_other_phases_are_refused(half):  # fault 62
    """The options of the run were changed behind its back, so that the checkpoint is not of them."""
    text = (half / "config.yaml").read_text(encoding="utf-8")
    assert text.count("  lr: 0.001") == 1  # of the phase; the option says nothing
    (half / "config.yaml").write_text(text.replace("  lr: 0.001", "  lr: 0.002"), encoding="utf-8")
    before = (half / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match=r"another training: lr of phase 'finetune' was 0\.001, is now 0\.002 - "):
        finetune(out=half, resume=True, quiet=True)
    assert (half / "checkpoints" / "last.ckpt").read_bytes() == before


PLATEAU = {"name": "plateau", "patience": 0}
PHASES = (Phase("probe", 1, train="head"), Phase("rest", 4, schedule=PLATEAU))


def saved(phases=PHASES, values=((0.9,), (0.8, 0.7)), processed=3, schedulers=()):
    """What a checkpoint holds of a schedule; by default after two of the four epochs of its second phase."""
    schedule = PhaseSchedule(phases)
    schedule.load_state_dict({"values": {str(number): list(losses) for number, losses in enumerate(values)}})
    return {
        "lr_schedulers": list(schedulers),
        "callbacks": {schedule.state_key: schedule.state_dict()},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": processed}}}},
    }


@pytest.mark.parametrize(
    ("checkpoint", "problem"),
    [
        (saved(PHASES[1:]), "phases were rest, are now probe, rest"),
        (saved((PHASES[0], replace(PHASES[1], epochs=5))), "epochs of phase 'rest' was 5, is now 4"),
        (saved((PHASES[0], replace(PHASES[1], schedule="cosine"))), "schedule of phase 'rest' was {'name': 'cosine', "),
        (saved((PHASES[0], replace(PHASES[1], schedule={**PLATEAU, "patience": 1}))), "'patience': 1, 'threshold'"),
        (saved(values=((0.9,), (0.8,))), "plateau of phase 'rest' has 1 values of 2 epochs"),
        (saved(values=()), "plateau of phase 'rest' has 0 values of 2 epochs"),
        (saved(processed=2), "plateau of phase 'rest' has 2 values of 1 epochs"),
        (saved(schedulers=[{"last_epoch": 3}]), "the state of 1 scheduler(s) of Lightning's, expected none"),
        ({**saved(), "callbacks": {}}, "no state of a PhaseSchedule"),
    ],
)
def test_other_schedules_are_refused(checkpoint, problem):  # fault 62
    with pytest.raises(CheckpointError) as caught:
        PhaseSchedule(PHASES).on_load_checkpoint(None, None, checkpoint)
    assert problem in str(caught.value)


def test_the_same_schedules_are_not_refused():
    checkpoint = saved()
    PhaseSchedule(PHASES).on_load_checkpoint(None, None, checkpoint)
    del checkpoint["callbacks"]["PhaseSchedule"]["phases"]  # of a release before they were written down
    PhaseSchedule(PHASES).on_load_checkpoint(None, None, checkpoint)


def test_another_batch_size_is_allowed_with_a_warning(half):  # fault 54
    with pytest.warns(TransferkitWarning, match="resuming with batch_size 6 instead of 4"):
        run = finetune(out=half, resume=True, quiet=True, batch_size=6)
    assert run.metrics["phases"][-1]["epochs"] == 2


def test_nothing_to_resume(half, tmp_path):  # fault 55
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear", encoding="utf-8")
    shutil.rmtree(half / "checkpoints")
    for out, message in (
        (tmp_path / "none", "nothing to resume - start without --resume"),
        (tmp_path / "other", r"holds no run \(no config.yaml\), so there is nothing to resume"),
        (half, "no checkpoint to resume from"),
    ):
        with pytest.raises(CheckpointError, match=message):
            finetune(out=out, resume=True, quiet=True)


def test_a_damaged_last_checkpoint_falls_back(half, reference):  # fault 56
    last = half / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    with pytest.warns(
        TransferkitWarning, match=r"last\.ckpt: .* does not match its checksum; going on from best\.ckpt"
    ):
        finetune(out=half, resume=True, quiet=True)
    assert_same_result(half, reference)


class Full:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.stream.write(data)

    def flush(self):
        self.stream.flush()


def test_a_disk_that_is_full_at_a_checkpoint(monkeypatch, half, reference):  # fault 48
    before = {path.name: path.read_bytes() for path in (half / "checkpoints").iterdir()}
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", lambda value, stream: save(value, Full(stream, 100_000)))
        with pytest.raises(StorageError, match=r"cannot write '.*/last\.ckpt': No space left on device") as caught:
            finetune(out=half, resume=True, quiet=True)
    assert caught.value.exit_status == 74
    assert {path.name: path.read_bytes() for path in (half / "checkpoints").iterdir()} == before  # and nothing beside
    finetune(out=half, resume=True, quiet=True)
    assert_same_result(half, reference)


def test_no_whole_checkpoint_is_an_error(half):  # fault 56
    for path in (half / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"no whole checkpoint: last\.ckpt: not a whole checkpoint"):
        finetune(out=half, resume=True, quiet=True)
