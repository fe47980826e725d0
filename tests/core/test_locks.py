"""Locks: of one holder at a time, free when it ends however it does, and of the file that others find."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from transferkit.core.errors import StorageError, TransferkitWarning
from transferkit.core.locks import hold, is_read_only


def test_a_lock_has_one_holder(tmp_path):
    path = tmp_path / "made" / "on the way" / "lock"
    with hold(path, wait=False) as first, hold(path, wait=False) as second:
        assert first and not second
        path.write_text("mine", encoding="utf-8")
        with hold(path, wait=False) as third:
            assert not third
        assert path.read_text(encoding="utf-8") == "mine"  # who asks in vain leaves it alone
    with hold(path, wait=True) as free:
        assert free


def test_a_lock_of_a_killed_process_is_free(tmp_path):  # fault 59
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from transferkit.core.locks import hold\n"
        "with hold(Path(sys.argv[1]), wait=False):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with hold(tmp_path / "lock", wait=False) as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
    with hold(tmp_path / "lock", wait=False) as mine:
        assert mine


def test_a_place_that_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(StorageError, match="cannot lock .*: Operation not permitted") as caught,
        hold(tmp_path / "lock", wait=True),
    ):
        pass
    assert is_read_only(caught.value)


def test_a_lock_is_let_go_of_although_a_forked_child_still_has_it(tmp_path, monkeypatch):
    original, copies = os.open, []

    def opened(path, *args):
        handle = original(path, *args)
        copies.append(os.dup(handle))  # what fork does
        return handle

    monkeypatch.setattr("os.open", opened)
    with hold(tmp_path / "lock", wait=False) as held:
        assert held
    monkeypatch.undo()
    with hold(tmp_path / "lock", wait=False) as held:
        assert held
    for copy in copies:
        os.close(copy)


def test_a_lock_file_that_was_removed_while_waiting_is_not_trusted(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    original, done = os.open, []

    def opened(name, *args):
        handle = original(name, *args)
        if not done:
            done.append(path.unlink())  # the last holder's doing, between our opening and locking it
        return handle

    monkeypatch.setattr("os.open", opened)
    with hold(path, wait=True) as held, hold(path, wait=False) as again:
        assert held and not again


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_costs_a_warning(tmp_path, monkeypatch, code):  # fault 111
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.warns(TransferkitWarning, match="is on a disk without locks"),
        hold(tmp_path / "lock", wait=False) as it,
    ):
        assert it
