"""Files whole or not at all, on disks and under users as they are: links, pipes, network disks, nobody's home."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from transferkit.core.errors import StorageError
from transferkit.core.files import atomic_write, user_cache, user_path


def test_a_link_is_followed(tmp_path):  # fault 112
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "a.csv", tmp_path / "link.csv"
    link.symlink_to(file)
    for content in ("first", "second"):  # a link that leads nowhere yet, too
        atomic_write(link, content)
        assert link.is_symlink()
        assert file.read_text(encoding="utf-8") == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.csv", "link.csv", "real"]


def test_a_pipe_is_written_to(tmp_path):  # fault 112
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    atomic_write(pipe, "rows")
    reader.join(10)
    assert read == [b"rows"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    atomic_write(os.devnull, "rows")
    assert Path(os.devnull).is_char_device()


def test_a_disk_that_keeps_rights_to_itself_and_flushes_no_directories(tmp_path, monkeypatch):  # fault 111
    def refuse(*args, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def flush(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pathlib.Path.chmod", refuse)
    monkeypatch.setattr("os.fsync", flush)
    code = errno.EINVAL
    atomic_write(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "content"
    code = errno.EIO
    with pytest.raises(StorageError, match="Input/output error"):
        atomic_write(tmp_path / "a", "content")


def test_a_user_without_a_home(monkeypatch):  # fault 122
    def nobody(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", classmethod(nobody))
    with pytest.raises(StorageError, match="no home folder .* set XDG_CACHE_HOME .* or pass --store"):
        user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/transferkit")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/d", "/home/me/d"), ("$PLACE/d", "/data/d"), ("${PLACE}", "/data"), ("a~b", "a~b"), ("./~", "./~"),
        ("$NOWHERE/d", "$NOWHERE/d"), ("hf-hub:a/b", "hf-hub:a/b"), ("-", "-"),
    ],
)  # fmt: skip
def test_paths_are_the_users(monkeypatch, text, expected):  # fault 101
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert user_path(text) == expected
