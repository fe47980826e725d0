"""Fetching weights: every way it can go right or wrong, against a server on this machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import huggingface_hub.file_download
import pytest
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file

from transferkit.core.errors import BackboneError, StorageError, TransferkitWarning
from transferkit.models.weights.downloads import fetch_url, offline
from transferkit.models.weights.files import read_state_dict
from transferkit.models.weights.hub import fetch_from_hub, hub_config

REPO = "timm/tiny.test"
STATE = {"conv.weight": torch.arange(5000.0).reshape(50, 100)}
FETCH = "import sys; from transferkit.models.weights.hub import fetch_from_hub as f; print(f(sys.argv[1]).path)"
# Before 1.0 the library spoke through requests, which sends any token, and gave up at the first broken connection.
modern_hub = pytest.mark.skipif(int(huggingface_hub.__version__.partition(".")[0]) < 1, reason="huggingface_hub < 1.0")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "TRANSFERKIT_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits a second before it resumes
    with LoopbackHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add_timm_repo(REPO, "test_resnet", STATE, {"input_size": [3, 64, 64]}, num_classes=7)
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "hub"


def weights_bytes(hub):
    return hub.repos[REPO].files["model.safetensors"]


def files_under(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file() and ".locks" not in path.parts]


def spawn(*args):
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *args], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# --- the hub, going right ---


def test_fresh_download_then_cached_without_a_second_get(hub, cache, monkeypatch):
    file = fetch_from_hub(REPO)
    assert file.path.is_relative_to(cache)
    assert file.sha256 == hashlib.sha256(weights_bytes(hub)).hexdigest()
    assert file.source == f"hf-hub:{REPO}@{hub.repos[REPO].commit}/model.safetensors"
    assert torch.equal(load_file(file.path)["conv.weight"], STATE["conv.weight"])
    assert hub.paths("GET") == [f"/{REPO}/resolve/main/model.safetensors"]
    heads = len(hub.paths("HEAD"))
    assert fetch_from_hub(REPO) == file
    assert len(hub.paths("GET")) == 1
    assert len(hub.paths("HEAD")) == heads + 1  # requests whether it is current, once
    monkeypatch.setenv("TRANSFERKIT_OFFLINE", "1")
    requests = len(hub.requests)
    assert fetch_from_hub(REPO) == file
    assert len(hub.requests) == requests


def test_a_new_version_on_the_hub_is_fetched_and_a_pinned_one_stays(hub):
    old, commit = fetch_from_hub(REPO), hub.repos[REPO].commit
    hub.add_timm_repo(REPO, "test_resnet", {"conv.weight": STATE["conv.weight"] + 1})
    new = fetch_from_hub(REPO)
    assert new.sha256 != old.sha256
    requests = len(hub.requests)
    assert fetch_from_hub(REPO, revision=commit) == old
    assert len(hub.requests) == requests


def test_second_name_when_the_first_does_not_exist(hub, tmp_path):
    torch.save(STATE, tmp_path / "w.bin")
    hub.add_file("me/old", "pytorch_model.bin", (tmp_path / "w.bin").read_bytes())
    file = fetch_from_hub("me/old")
    assert file.path.name == "pytorch_model.bin"
    assert torch.equal(read_state_dict(file.path)["conv.weight"], STATE["conv.weight"])


def test_config(hub, monkeypatch):
    expected = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    assert hub_config(REPO) == expected
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_config(REPO) == expected


@pytest.mark.parametrize("content", [b"[1, 2]", b"<html>", b"\xff\xfe", b"", b"[" * 100_000])
def test_config_that_is_no_json_object(hub, content):  # fault 88
    hub.add_file(REPO, "config.json", content)
    with pytest.raises(BackboneError, match=r"config.json of 'timm/tiny.test' is not a JSON object"):
        hub_config(REPO)


def test_two_processes_at_once(hub, cache):  # fault 36
    hub.hold()
    processes = [spawn("-c", FETCH, REPO) for _ in range(2)]
    assert hub.reached_gate.wait(60)
    hub.release()
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert results[0][1] == results[1][1] == b""  # no progress bars, no log lines off a terminal
    assert [path.read_bytes() for path in (cache / "models--timm--tiny.test" / "blobs").iterdir()] == [
        weights_bytes(hub)
    ]


# --- offline ---


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFERKIT_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_offline_is_read_when_called(monkeypatch, switch, value):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFERKIT_OFFLINE", raising=False)
    assert not offline()
    monkeypatch.setenv(switch, value)
    assert offline()
    monkeypatch.setenv(switch, "0")
    assert not offline()


def test_offline_not_cached_is_silent(hub, cache, monkeypatch):  # fault 31
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(BackboneError) as caught:
        fetch_from_hub(REPO)
    message = str(caught.value)
    assert "'timm/tiny.test' is not in the cache" in message
    assert str(cache) in message
    assert message.endswith("connect and run again, or pass --weights FILE")
    assert hub.requests == []
    assert not cache.exists()


# --- the network failing ---


def unreachable_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=["unreachable", "unresolvable", "silent"])
def dead_hub(request, monkeypatch):
    """The address of a hub that does not answer, and what is said of it."""
    if request.param == "unreachable":
        yield f"http://user:secret@127.0.0.1:{unreachable_port()}", r"http://127\.0\.0\.1:\d+.*refused"
    elif request.param == "unresolvable":

        def no_such_host(*args, **kwargs):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
        yield "http://hub.invalid", r"http://hub.invalid \(Connect"
    else:
        monkeypatch.setattr("transferkit.models.weights.hub._CONTACT_TIMEOUT_S", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}", "http.* timed out"


def test_a_dead_hub_fails_in_seconds_and_gives_nothing_away(hub, monkeypatch, dead_hub):
    address, reason = dead_hub
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    start = time.perf_counter()
    with pytest.raises(BackboneError, match=f"cannot fetch .* of 'timm/tiny.test': cannot reach {reason}") as caught:
        fetch_from_hub(REPO)
    assert time.perf_counter() - start < 30  # huggingface_hub by itself tries for minutes
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    if "refused" in reason:  # and so does a plain address
        with pytest.raises(BackboneError, match=f"cannot reach {reason}"):
            fetch_url(f"{address.replace('user:secret@', '')}/net.pth")


@pytest.mark.parametrize("reason", ["cannot reach", "the hub says 503"])
def test_cached_copy_when_the_hub_does_not_answer(hub, monkeypatch, reason):
    file = fetch_from_hub(REPO)
    if reason == "cannot reach":
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unreachable_port()}")
    else:
        hub.fail(503)
    with pytest.warns(TransferkitWarning, match=f"using the cached 'model.safetensors' of 'timm/tiny.test': {reason}"):
        assert fetch_from_hub(REPO) == file


@pytest.mark.parametrize(
    ("status", "error_code", "message"),
    [
        (401, "RepoNotFound", "the hub says 401: no such repository, or a private or gated one"),
        (403, "GatedRepo", "the hub says 403: .* set HF_TOKEN"),
        (404, "RepoNotFound", "the hub says 404: no such repository or revision"),
        (404, "RevisionNotFound", "the hub says 404: no such repository or revision"),
        (404, None, "there is no 'model.safetensors' or 'pytorch_model.bin' of 'timm/tiny.test' at revision 'main'"),
        (500, None, "the hub says 500 - try again later, or pass --weights FILE"),
        (503, None, "the hub says 503 - try again later"),
    ],
)
def test_error_answers(hub, monkeypatch, status, error_code, message):
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    hub.fail(status, error_code=error_code)
    with pytest.raises(BackboneError, match=message) as caught:
        fetch_from_hub(REPO)
    assert "'timm/tiny.test'" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    assert hub.requests[0].headers["authorization"] == "Bearer hf_topsecret"  # it was used, so it could have leaked


@modern_hub
def test_token_with_a_control_character_does_not_leak(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_top\x0bsecret")
    with pytest.raises(BackboneError, match=r"cannot reach .* Illegal header") as caught:
        fetch_from_hub(REPO)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 500])
def test_error_answers_to_the_download_itself(hub, status):
    hub.fail(status, methods=("GET",))
    with pytest.raises(BackboneError, match=f"cannot fetch 'model.safetensors' of .*: the hub says {status}"):
        fetch_from_hub(REPO)


def test_unknown_repository_revision_and_id(hub, monkeypatch):
    with pytest.raises(BackboneError, match="of 'me/typo': the hub says 401"):
        fetch_from_hub("me/typo")
    with pytest.raises(BackboneError, match=r"\('v9'\) - check the id"):
        fetch_from_hub(REPO, revision="v9")
    for offline_too in (False, True):
        monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline_too)))
        with pytest.raises(BackboneError, match=r"'a/b/c' is not a hub id: .* - expected 'owner/name'"):
            fetch_from_hub("a/b/c")


def test_a_captive_portal_is_not_a_hub(hub, monkeypatch):
    hub.add_plain(f"portal/{REPO}/resolve/main/model.safetensors", b"<html>please log in</html>")
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/portal")
    with pytest.raises(BackboneError, match="does not answer like a model hub - check HF_ENDPOINT"):
        fetch_from_hub(REPO)


# --- broken content ---


@modern_hub
def test_interrupted_download_resumes(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what came in whole chunks is kept
    hub.cut(at=7000, times=1)
    assert fetch_from_hub(REPO).sha256 == hashlib.sha256(weights_bytes(hub)).hexdigest()
    assert hub.requests[-1].headers["range"] == "bytes=7000-"


def test_interrupted_for_good_then_completed(hub, cache):
    hub.cut(at=7000)
    with pytest.raises(BackboneError, match=r"the download of 'model.safetensors' of .* broke off .* - run again"):
        fetch_from_hub(REPO)
    assert not [path for path in files_under(cache) if path.name == "model.safetensors" or path.stat().st_size >= 7000]
    hub.heal()
    assert fetch_from_hub(REPO).sha256 == hashlib.sha256(weights_bytes(hub)).hexdigest()


def test_no_log_lines_beside_the_error(hub):
    records, logger = [], logging.getLogger("huggingface_hub")
    handler, level = logging.Handler(), logger.level
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        hub.cut(at=7000, times=1)
        with contextlib.suppress(BackboneError):  # early releases give up at once
            fetch_from_hub(REPO)
        assert (records, logger.level) == ([], level)
        logger.warning("as usual")
        assert len(records) == 1
    finally:
        logger.removeHandler(handler)


def test_killed_while_fetching(hub, monkeypatch):  # fault 36
    hub.hold()
    process = spawn("-c", FETCH, REPO)
    assert hub.reached_gate.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    hub.release()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match="not in the cache"):  # nothing that looks like the weights
        fetch_from_hub(REPO)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert fetch_from_hub(REPO).sha256 == hashlib.sha256(weights_bytes(hub)).hexdigest()


def test_wrong_bytes_are_removed(hub, cache, monkeypatch):
    hub.corrupt()
    with pytest.raises(BackboneError, match=r"is damaged: its sha256 is \w{16}\.\.\., expected .* removed; run again"):
        fetch_from_hub(REPO)
    assert not [path for path in files_under(cache) if path.stat().st_size == len(weights_bytes(hub))]
    hub.heal()
    assert fetch_from_hub(REPO).sha256 == hashlib.sha256(weights_bytes(hub)).hexdigest()


@pytest.mark.parametrize("without_network", [False, True])
def test_damage_in_the_cache_is_found_and_the_advice_works(hub, monkeypatch, without_network):  # fault 33
    file = fetch_from_hub(REPO)
    blob = file.path.resolve()
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    monkeypatch.setenv("TRANSFERKIT_OFFLINE", str(int(without_network)))
    with pytest.raises(BackboneError, match=r"'model.safetensors' of 'timm/tiny.test' is damaged") as caught:
        fetch_from_hub(REPO)
    assert str(caught.value).endswith(f"delete {str(blob)!r} and run again")
    blob.unlink()
    monkeypatch.delenv("TRANSFERKIT_OFFLINE")
    assert fetch_from_hub(REPO) == file


# --- the disk failing ---


def test_cache_that_cannot_be_made(hub, tmp_path):  # fault 37; tests may run as root, so a file stands in the way
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write 'model.safetensors' of .* to the cache .*home/hub") as caught:
        fetch_from_hub(REPO)
    assert caught.value.exit_status == 74


def test_read_only_cache_that_has_the_file(hub, monkeypatch):
    file = fetch_from_hub(REPO)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system")

    for module, name in ((os, "makedirs"), (os, "replace"), (os, "symlink"), (Path, "mkdir"), (Path, "touch")):
        monkeypatch.setattr(module, name, refuse)
    assert fetch_from_hub(REPO) == file


def test_full_disk_before_and_during(hub, cache, monkeypatch):  # fault 37
    size = len(weights_bytes(hub))
    usage = type("Usage", (), {"free": size - 1})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(StorageError, match=f"needs {size} bytes and the cache .* has {size - 1} free"):
            fetch_from_hub(REPO)
    assert hub.paths("GET") == []

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", full)
        with pytest.raises(StorageError, match=f"No space left on device - make it writable, free {size} bytes"):
            fetch_from_hub(REPO)
    assert not [path for path in files_under(cache) if path.name == "model.safetensors"]
    assert fetch_from_hub(REPO).sha256 == hashlib.sha256(weights_bytes(hub)).hexdigest()


def test_caches_follow_the_environment_at_call_time(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "a"))
    assert fetch_from_hub(REPO).path.is_relative_to(tmp_path / "a")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert fetch_from_hub(REPO).path.is_relative_to(tmp_path / "b" / "huggingface" / "hub")


# --- plain addresses ---

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def checkpoints(tmp_path):
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_plain_address_and_its_cache(hub, checkpoints, monkeypatch):
    url = hub.add_plain(f"models/net-{DIGEST[:8]}.pth", CONTENT)
    file = fetch_url(f"{url}?signature=secret-00000000.y")
    assert file.path == checkpoints / f"net-{DIGEST[:8]}.pth"
    assert file.path.read_bytes() == CONTENT
    assert (file.sha256, file.source) == (DIGEST, url)
    monkeypatch.setenv("TRANSFERKIT_OFFLINE", "1")
    assert fetch_url(url) == file
    assert len(hub.requests) == 1
    with pytest.raises(BackboneError, match=r"'other.pth' is not in the cache .* offline mode is on"):
        fetch_url(f"{hub.url}/models/other.pth")
    assert len(hub.requests) == 1


def test_plain_address_under_torch_hubs_own_cache(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    file = fetch_url(hub.add_plain("net.pth", CONTENT))
    assert file.path.parent == Path(torch.hub.get_dir()) / "checkpoints"


@pytest.mark.parametrize("cut_at", [0, 100, 10239])
def test_plain_short_body(hub, checkpoints, cut_at):  # trap 13
    url = hub.add_plain("net.pth", CONTENT)
    hub.cut(at=cut_at)
    with pytest.raises(BackboneError, match=rf"broke off: {cut_at} of 10240 bytes|broke off after|cannot reach"):
        fetch_url(url)
    assert list(checkpoints.iterdir()) == []
    hub.heal()
    assert fetch_url(url).sha256 == DIGEST


def test_plain_wrong_hash_fresh_and_cached(hub, checkpoints):
    with pytest.raises(BackboneError, match=r"are damaged: their sha256 is .*expected 00000000.*removed; run again"):
        fetch_url(hub.add_plain("net-00000000.pth", CONTENT))
    assert list(checkpoints.iterdir()) == []
    url = hub.add_plain(f"net-{DIGEST[:8]}.pth", CONTENT)
    path = fetch_url(url).path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(BackboneError, match="are damaged") as caught:
        fetch_url(url)
    assert str(caught.value).endswith(f"delete {str(path)!r} and run again")
    path.unlink()
    assert fetch_url(url).sha256 == DIGEST


def test_plain_error_answers(hub, checkpoints):
    url = hub.add_plain("net.pth", CONTENT)
    hub.fail(403)
    with pytest.raises(BackboneError, match="cannot fetch http://127.* the server says 403"):
        fetch_url(f"{url}?token=topsecret")
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "net.pth", "http:///x", "http://u:topsecret@h/x", "http://h:x/y"]
)
def test_plain_only_http(hub, url):
    with pytest.raises(BackboneError, match=r"expected http://... or https://...") as caught:
        fetch_url(url)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("path", ["..%2Fx.pth/..", "", "a/.."])
def test_plain_names_stay_in_the_cache(hub, path):  # fault 90
    with pytest.raises(BackboneError, match="expected a file name without folders"):
        fetch_url(f"{hub.url}/{path}")


def test_plain_disk_errors(hub, checkpoints, monkeypatch):
    url = hub.add_plain("net.pth", CONTENT)
    usage = type("Usage", (), {"free": 10239})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(StorageError, match=r"needs 10240 bytes .* has 10239 free"):
            fetch_url(url)
    checkpoints.rmdir()
    checkpoints.write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot create .*checkpoints"):
        fetch_url(url)
