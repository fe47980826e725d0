"""The run directory: refusals, locks, overwriting, atomic files."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from transferkit.core.errors import CheckpointError, StorageError
from transferkit.core.files import atomic_write, write_json
from transferkit.runs.directory import default_run_dir, is_complete, named_run_dir, open_run_dir, prepare_run_dir


def old_run(path):
    path.mkdir()
    (path / "config.yaml").write_text("data: x\n", encoding="utf-8")
    (path / "metrics.json").write_text("{}", encoding="utf-8")
    return path


def test_default_names_count_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(default_run_dir("photos/My Cats.d/", "timm/resnet18.a1_in1k")) == "runs/My_Cats-timm_resnet18.a1_in1k-1"
    (tmp_path / "runs" / "cats-mini-1").mkdir(parents=True)
    assert default_run_dir("cats", "mini").name == "cats-mini-2"
    assert default_run_dir("my-photos", "mini").name == "my-photos-mini-1"
    assert default_run_dir("ä" * 120, "b" * 300).name == f"{'ä' * 40}-{'b' * 80}-1"


def test_a_default_is_reserved_as_soon_as_it_is_chosen(tmp_path, monkeypatch):  # fault 100
    monkeypatch.chdir(tmp_path)
    with named_run_dir(None, "cats", "mini") as first, named_run_dir(None, "cats", "mini") as second:
        assert (first.name, second.name) == ("cats-mini-1", "cats-mini-2")
        (second / "config.yaml").write_text("", encoding="utf-8")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["cats-mini-2"]  # what is empty goes away
    with named_run_dir("mine", "cats", "mini") as named:
        assert (named, named.exists()) == (Path("mine"), False)


def test_a_directory_that_another_run_has_filled_meanwhile_is_refused(tmp_path):  # fault 100
    run = tmp_path / "run"
    prepare_run_dir(run, resume=False, overwrite=False)
    old_run(run)
    with pytest.raises(CheckpointError, match="is not empty"), open_run_dir(run, resume=False, overwrite=False):
        raise AssertionError("it was opened")
    assert is_complete(run)


def test_a_filled_directory_is_refused(tmp_path):  # fault 40
    run = old_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"is not empty - go on with it by --resume, replace it by --overwrite"):
        prepare_run_dir(run, resume=False, overwrite=False)


def test_an_empty_directory_is_fine(tmp_path):
    prepare_run_dir(tmp_path, resume=False, overwrite=False)
    prepare_run_dir(tmp_path / "new", resume=False, overwrite=False)
    assert not (tmp_path / "new").exists()


def test_overwrite_takes_runs_only(tmp_path):  # fault 40
    (tmp_path / "thesis.tex").write_text("dear", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds no run \(no config.yaml\), so --overwrite will not replace it"):
        prepare_run_dir(tmp_path, resume=False, overwrite=True)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a file, expected a directory"):
        prepare_run_dir(tmp_path / "run", resume=False, overwrite=False)


def test_overwrite_deletes_the_old_run_only_on_success(tmp_path):  # fault 40
    run = old_run(tmp_path / "run")
    with open_run_dir(run, resume=False, overwrite=True):
        assert not is_complete(run)
        (run / "new").write_text("", encoding="utf-8")
        assert (tmp_path / ".run.replaced" / "config.yaml").exists()
    assert sorted(path.name for path in run.iterdir()) == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_overwrite_puts_the_old_run_back_after_a_failure(tmp_path):  # fault 40
    run = old_run(tmp_path / "run")
    with pytest.raises(RuntimeError, match="boom"), open_run_dir(run, resume=False, overwrite=True):
        (run / "new").write_text("", encoding="utf-8")
        raise RuntimeError("boom")
    assert is_complete(run)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.json"]  # no lock either


def test_a_failure_leaves_no_lock(tmp_path):
    run = old_run(tmp_path / "run")
    with pytest.raises(RuntimeError), open_run_dir(run, resume=True, overwrite=False):
        assert (run / ".lock").exists()
        raise RuntimeError("boom")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.json"]


def test_the_lock_of_another_stays(tmp_path):
    run = old_run(tmp_path / "run")
    with pytest.raises(RuntimeError), open_run_dir(run, resume=True, overwrite=False):
        (run / ".lock").unlink()
        (run / ".lock").write_text("process 1 on another machine", encoding="utf-8")
        raise RuntimeError("boom")
    assert (run / ".lock").read_text(encoding="utf-8") == "process 1 on another machine"


def test_a_failing_disk_does_not_hide_what_failed(tmp_path, monkeypatch):  # fault 48
    def unlink(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    run = old_run(tmp_path / "run")
    with pytest.raises(StorageError, match="the disk is full"), open_run_dir(run, resume=True, overwrite=False):
        monkeypatch.setattr(Path, "unlink", unlink)
        raise StorageError("the disk is full")


def test_a_failed_new_run_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), open_run_dir(tmp_path / "run", resume=False, overwrite=False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def hold(path, ready):
    with open_run_dir(path, resume=False, overwrite=False):
        ready.set()
        time.sleep(60)


def test_two_processes_and_a_stale_lock(tmp_path):  # fault 59
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(CheckpointError, match=rf"locked by process {process.pid} on "),
        open_run_dir(tmp_path / "run", resume=True, overwrite=False),
    ):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with open_run_dir(tmp_path / "run", resume=True, overwrite=False) as run:
        assert (run / ".lock").exists()
    assert not (tmp_path / "run" / ".lock").exists()


def test_an_unwritable_directory_is_found_before_training(tmp_path, monkeypatch):  # fault 58
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("transferkit.runs.directory.tempfile.NamedTemporaryFile", refuse)
    with (
        pytest.raises(StorageError, match="cannot write to .*: Permission denied - give another --out"),
        open_run_dir(tmp_path / "run", resume=False, overwrite=False),
    ):
        pass


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, step):  # fault 48
    target = tmp_path / "file.json"
    write_json(target, {"old": True})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"pathlib.Path.{step}", full)
    with pytest.raises(StorageError, match=r"cannot write '.*file.json': No space left on device"):
        write_json(target, {"old": False})
    monkeypatch.undo()
    assert json.loads(target.read_text(encoding="utf-8")) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_full_disk_at_fsync(tmp_path, monkeypatch):  # fault 48
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transferkit.core.files.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        atomic_write(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []
