"""The feature store when things go wrong: damaged files, killed writers, full disks, read-only stores."""

import contextlib
import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from store_workers import SPAWN, SPEC, WIDTH, add, die_at, fill, keys_of, missing_of, rows_of

from transferkit.core.errors import StorageError, StoreError, TransferkitWarning
from transferkit.features.store.shards import DamagedShard, build_shard, pack_keys, read_keys, read_shard
from transferkit.features.store.store import FeatureStore
from transferkit.features.store.upkeep import gc, verify


def files(folder):
    """Every file below, with its bytes and its time."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def shards_of(target):
    return [target.path / shard.file for shard in target.manifest().shards]


@pytest.fixture
def target(store):
    """A set of rows 0-3, 4-7 and 8-11, in three shards."""
    target = store.open(SPEC)
    for start in (0, 4, 8):
        add(target, range(start, start + 4))
    return target


# --- damaged shards


def header_length(path):
    return int.from_bytes(path.read_bytes()[:8], "little")


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut to the header": lambda path: os.truncate(path, 8 + header_length(path)),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped in the length": lambda path: flip(path, 1),
    "flipped in the header": lambda path: flip(path, 8 + header_length(path) // 2),
    "flipped in the features": lambda path: flip(path, 8 + header_length(path) + 5),
    "flipped in the keys": lambda path: flip(path, path.stat().st_size - 60),
    "deleted": lambda path: path.unlink(),
    "another shard's content": lambda path: path.write_bytes(
        next(other for other in sorted(path.parent.glob("*.safetensors")) if other != path).read_bytes()
    ),
}


@pytest.mark.parametrize("warm", [False, True], ids=["new handle", "warm handle"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_dropped_and_its_rows_are_computed_again(store, target, damage, warm):  # fault 66
    path = shards_of(target)[1]
    others = [other.read_bytes() for other in shards_of(target) if other != path]
    handle = store.open(SPEC)
    if warm:
        assert missing_of(handle, range(12)) == []
    DAMAGE[damage](path)
    with pytest.warns(TransferkitWarning, match=rf"{path.name} is damaged, its 4 rows are computed again") as caught:
        assert missing_of(handle, range(12)) == [4, 5, 6, 7]
    assert len(caught) == 1 and Path(caught[0].filename).name in ("featureset.py", "store_workers.py")
    assert not path.exists() and path not in shards_of(store.open(SPEC))
    assert missing_of(store.open(SPEC), range(12)) == [4, 5, 6, 7]  # without another warning
    add(handle, range(4, 8))
    assert missing_of(store.open(SPEC), range(12)) == [] and verify(store) == []
    assert [other.read_bytes() for other in shards_of(target) if other != path] == others
    assert path in shards_of(target)  # the same content has the same name again


def test_a_flipped_byte_anywhere_is_found(tmp_path):  # fault 66
    shard, data = build_shard(pack_keys(keys_of(range(2))), rows_of(range(2)))
    path = tmp_path / shard.file
    path.write_bytes(data)
    assert np.array_equal(read_shard(tmp_path, shard, WIDTH).features, rows_of(range(2)))
    for at in range(len(data)):
        flip(path, at)
        with pytest.raises(DamagedShard, match="does not have the recorded sha256"):
            read_shard(tmp_path, shard, WIDTH)
        with contextlib.suppress(DamagedShard):  # of the keys alone it is enough that nothing but this comes of it
            assert read_keys(tmp_path, shard).shape == (2,)
        flip(path, at)


def test_all_shards_damaged(store, target):  # fault 66
    for path in shards_of(target):
        path.write_bytes(b"")
    with pytest.warns(TransferkitWarning, match="is damaged") as caught:
        assert missing_of(target, range(12)) == list(range(12))
    assert len(caught) == 3 and target.width() is None
    target.add(keys_of([1]), rows_of([1]))
    assert missing_of(store.open(SPEC), [1, 2]) == [1]


def test_damage_that_another_process_has_mended_is_none(store, target, monkeypatch):
    """A shard looks damaged, and is good again by the time writers are shut out."""
    path = shards_of(target)[1]
    good = path.read_bytes()
    for damage in DAMAGE.values():
        handle = store.open(SPEC)
        damage(path)
        lock = handle._lock

        def mended(lock=lock):
            path.write_bytes(good)
            return lock()

        monkeypatch.setattr(handle, "_lock", mended)
        assert missing_of(handle, range(12)) == []


def test_a_shard_that_another_process_has_dropped_is_no_damage(store, target):
    handle = store.open(SPEC)
    assert missing_of(handle, range(12)) == []
    path = shards_of(target)[0]
    flip(path, 300)
    with pytest.warns(TransferkitWarning, match="is damaged"):
        missing_of(target, range(12))
    assert missing_of(handle, range(12)) == [0, 1, 2, 3]


def test_a_store_removed_under_a_reader(store, target):
    assert missing_of(target, range(12)) == []
    target.path.rename(store.root / "elsewhere")
    assert missing_of(target, range(12)) == list(range(12)) and target.width() is None


def test_a_shard_that_may_not_be_read_is_not_damaged(target, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files")

    before = files(target.path)
    assert missing_of(target, range(12)) == []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: refuse(p) if p.suffix == ".safetensors" else original(p))
    with pytest.raises(StorageError, match=r"cannot read '.*\.safetensors': Too many open files"):
        missing_of(target, range(12))
    monkeypatch.undo()
    assert files(target.path) == before


# --- damaged descriptions

BROKEN = {
    "empty": b"",
    "cut": b'{"format": 1, "width": 8, "sha',
    "no object": b"[]",
    "no JSON": b"\xff\xfe\0",
    "nested": b"[" * 100_000,
    "no format": b"{}",
    "format 0": b'{"format": 0}',
    "format x": b'{"format": "x"}',
    "nothing else": b'{"format": 1}',
}
ENTRY = {"file": "0" * 24 + ".safetensors", "rows": 1, "bytes": 1, "sha256": "0" * 64}
ENTRIES = {
    "a way out": {**ENTRY, "file": "../../precious"},
    "another name": {**ENTRY, "file": "1" * 24 + ".safetensors"},
    "no digest": {**ENTRY, "sha256": 5},
    "no rows": {**ENTRY, "rows": 0},
    "bytes of text": {**ENTRY, "bytes": "1"},
    "too much": {**ENTRY, "more": 1},
    "too little": {"file": ENTRY["file"]},
    "no entry": None,
}
BROKEN_MANIFESTS = {
    **BROKEN,
    **{
        name: json.dumps({"format": 1, "width": width, "shards": shards, "failures": failures}).encode()
        for name, (width, shards, failures) in {
            **{name: (8, [entry], {}) for name, entry in ENTRIES.items()},
            "twice": (8, [ENTRY, ENTRY], {}),
            "no width": (None, [ENTRY], {}),
            "a width alone": (8, [], {}),
            "no key": (None, [], {"zz": "x"}),
            "a short key": (None, [], {"00": "x"}),
            "no reason": (None, [], {"00" * 40: 1}),
        }.items()
    },
}


OTHER_SPEC = {**SPEC.to_dict(), "layer": "other"}
BROKEN_DESCRIPTIONS = {
    **BROKEN,
    "missing": None,
    "no fields": b'{"format": 1, "spec": []}',
    "one field": b'{"format": 1, "spec": {"layer": "x"}}',
    "another spec": json.dumps({"format": 1, "spec": OTHER_SPEC}).encode(),
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(pytest.param("manifest.json", content, id=f"manifest: {name}") for name, content in BROKEN_MANIFESTS.items()),
        *(pytest.param("set.json", content, id=f"set: {name}") for name, content in BROKEN_DESCRIPTIONS.items()),
    ],
)
def test_a_damaged_set_counts_as_empty(store, target, name, content):  # fault 66
    path = target.path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert len(store.sets()) == (name == "manifest.json")
    handle = store.open(SPEC)
    with pytest.warns(
        TransferkitWarning, match=rf"{name} is damaged, all rows of the set are computed again"
    ) as caught:
        assert missing_of(handle, range(12)) == list(range(12))
        assert handle.width() is None and handle.failures(keys_of([1])) == {}
    assert len(caught) == 1
    add(handle, range(4))
    assert missing_of(store.open(SPEC), range(12)) == list(range(4, 12))
    assert {problem.what for problem in verify(store)} == {"is an orphan: no manifest lists it"}
    gc(store)
    assert verify(store) == [] and missing_of(target, range(12)) == list(range(4, 12))


def test_a_mended_description_does_not_bring_back_the_old_manifest(store, target, monkeypatch):
    (target.path / "set.json").write_bytes(b"")

    def full(*args):
        raise StorageError("full")

    monkeypatch.setattr("transferkit.features.store.featureset.atomic_write", full)
    with pytest.warns(TransferkitWarning), pytest.raises(StorageError):
        add(store.open(SPEC), [50])
    assert missing_of(store.open(SPEC), range(12)) == list(range(12))


@pytest.mark.parametrize("name", ["set.json", "manifest.json"])
def test_a_newer_format_is_refused(store, target, name):
    path = target.path / name
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "format": 2, "future": True}), encoding="utf-8"
    )
    before = files(target.path)
    message = rf"{name}: has format 2, transferkit \S+ reads formats up to 1 - update transferkit"
    for use in (
        lambda handle: missing_of(handle, [1]),
        lambda handle: add(handle, [50]),
        lambda handle: handle.width(),
        lambda handle: handle.claim(keys_of([1]), wait=False).__enter__(),
    ):
        with pytest.raises(StoreError, match=message) as raised:
            use(store.open(SPEC))
        assert raised.value.exit_status == 7
    report = gc(store)
    assert report.removed == () and "has format 2" in report.skipped[0]
    assert "has format 2" in verify(store)[0].what
    assert {name: data for name, (data, _) in files(target.path).items() if name != "lock"} == {
        name: data for name, (data, _) in before.items() if name != "lock"
    }


# --- killed writers


def no_damage(store):
    """Nothing but what a writer leaves that could not tidy up."""
    assert {problem.what for problem in verify(store)} <= {
        "is an orphan: no manifest lists it",
        "is a leftover of an unfinished write",
    }


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        # set.json, shard and manifest are each filled, flushed, put in place; then the folder is flushed
        *(("write_bytes", nth) for nth in range(3)),
        *(("fsync", nth) for nth in range(6)),
        *(("replace", nth) for nth in range(3)),
    ],
)
def test_a_writer_killed_at_each_step(store, name, nth):  # fault 65
    process = SPAWN.Process(target=die_at, args=(store.root, range(4), name, nth))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    no_damage(store)
    target = store.open(SPEC)
    written = name == "fsync" and nth == 5  # only the last step comes after the manifest is in place
    assert missing_of(target, range(4)) == ([] if written else [0, 1, 2, 3])
    add(target, range(4))
    assert missing_of(target, range(4)) == []
    gc(store)
    assert verify(store) == [] and missing_of(store.open(SPEC), range(4)) == []


@pytest.mark.slow
def test_twenty_killed_writers(store, tmp_path):  # fault 65
    chunks = [list(range(start, start + 4)) for start in range(0, 800, 4)]
    everything = range(800)
    undisturbed = FeatureStore(tmp_path / "undisturbed")
    start = time.perf_counter()
    fill(undisturbed.root, list(chunks), 0)
    one_write = (time.perf_counter() - start) / len(chunks)
    generator, counts = random.Random(0), []
    for attempt in range(20):
        ready = SPAWN.Event()
        process = SPAWN.Process(target=fill, args=(store.root, list(chunks), attempt, ready, True))
        process.start()
        assert ready.wait(60)
        time.sleep(generator.uniform(0, 6 * one_write))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        no_damage(store)
        counts.append(800 - len(missing_of(store.open(SPEC), everything)))
    assert counts == sorted(counts) and counts[-1] > 0  # each kept what those before had finished
    fill(store.root, list(chunks), 0)
    one, two = (each.open(SPEC) for each in (store, undisturbed))
    assert missing_of(one, everything) == missing_of(two, everything) == []
    assert set(one.manifest().shards) == set(two.manifest().shards)
    gc(store)
    assert verify(store) == []
    contents = [{path.name: path.read_bytes() for path in each.path.glob("*.safetensors")} for each in (one, two)]
    assert contents[0] == contents[1]


# --- full and failing disks


def failing(monkeypatch, owner, name, nth, number):
    """Let the n-th call of a function fail like a full disk; return the list of calls."""
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == nth + 1:
            if name == "write_bytes":
                original(args[0], args[1][: len(args[1]) // 2])
            raise OSError(number, os.strerror(number))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


STEPS = {"write_bytes": (Path, 2), "fsync": (os, 4), "replace": (Path, 2), "chmod": (Path, 2)}


def test_the_steps_are_all_steps(target, monkeypatch):
    calls = {name: failing(monkeypatch, owner, name, 1000, 0) for name, (owner, _) in STEPS.items()}
    add(target, range(20, 24))
    assert {name: len(made) for name, made in calls.items()} == {name: count for name, (_, count) in STEPS.items()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=["ENOSPC", "EDQUOT", "EROFS"])
@pytest.mark.parametrize(("name", "nth"), [(name, nth) for name, (_, count) in STEPS.items() for nth in range(count)])
def test_a_full_disk_loses_nothing(store, target, monkeypatch, name, nth, number):  # fault 68
    before = files(target.path)
    failing(monkeypatch, STEPS[name][0], name, nth, number)
    with pytest.raises(StorageError, match=os.strerror(number)) as raised:
        add(target, range(20, 24))
    monkeypatch.undo()
    assert raised.value.exit_status == 74
    after = files(target.path)
    if (name, nth) == ("fsync", 3):  # the manifest is in place, only its folder was not flushed
        assert missing_of(store.open(SPEC), range(20, 24)) == []
        assert len(after) == len(before) + 1 and verify(store) == []
        before.pop("manifest.json")
        assert before.items() <= after.items()
    else:
        assert after == before
        assert missing_of(store.open(SPEC), range(20, 24)) == [0, 1, 2, 3]
    assert missing_of(store.open(SPEC), range(12)) == []
    add(target, range(20, 24))
    assert missing_of(store.open(SPEC), [*range(12), *range(20, 24)]) == [] and verify(store) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", ["os.mkdir", "os.open", "fcntl.flock", "tempfile.mkstemp"])
def test_a_full_disk_at_the_start(store, monkeypatch, call, number):  # fault 68
    target = store.open(SPEC)

    def failing(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, failing)
    with pytest.raises(StorageError, match=os.strerror(number)):
        add(target, [1])
    if call != "tempfile.mkstemp":
        with pytest.raises(StorageError, match=os.strerror(number)), target.claim(keys_of([1]), wait=False):
            pass
    monkeypatch.undo()
    assert all(path.name == "lock" for path in store.root.rglob("*") if path.is_file())
    add(target, [1])
    assert missing_of(target, [1]) == []


def test_damage_on_a_full_disk(store, target, monkeypatch):  # faults 66, 68
    path = shards_of(target)[0]
    flip(path, 300)
    before = files(target.path)
    failing(monkeypatch, os, "fsync", 0, errno.ENOSPC)
    with pytest.warns(TransferkitWarning, match="is damaged, its 4 rows") as caught:
        assert missing_of(target, range(12)) == [0, 1, 2, 3]
        assert missing_of(target, range(12)) == [0, 1, 2, 3]
    assert len(caught) == 1 and files(target.path) == before
    monkeypatch.undo()
    add(target, range(4))  # mends the file, although the manifest could not be cleared of it
    assert missing_of(store.open(SPEC), range(12)) == [] and verify(store) == []


def test_the_next_write_clears_the_manifest_of_known_damage(store, target, monkeypatch):  # fault 66
    path = shards_of(target)[0]
    flip(path, 300)
    failing(monkeypatch, os, "fsync", 0, errno.ENOSPC)
    with pytest.warns(TransferkitWarning, match="is damaged, its 4 rows"):
        assert missing_of(target, range(12)) == [0, 1, 2, 3]
    monkeypatch.undo()
    assert path in shards_of(target)
    add(target, [50])
    assert path not in shards_of(target)
    assert missing_of(store.open(SPEC), [*range(12), 50]) == [0, 1, 2, 3]  # without another warning


def test_a_file_in_the_place_of_the_store(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    store = FeatureStore(tmp_path / "file")
    assert missing_of(store.open(SPEC), [1]) == [0]
    with pytest.raises(StorageError, match="cannot write to the feature set"):
        add(store.open(SPEC), [1])
    with pytest.raises(StorageError, match="cannot list"):
        store.sets()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


# --- read-only stores


@pytest.fixture
def read_only(target, monkeypatch):
    """Let every call that would write fail as on a read-only mount; tests may run as root, whom no mode stops."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    opened, allowed = os.open, os.access
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(
        os, "open", lambda p, flags, *a, **k: refuse() if flags & writing else opened(p, flags, *a, **k)
    )
    monkeypatch.setattr(os, "access", lambda path, mode, **k: not mode & os.W_OK and allowed(path, mode, **k))
    for name in ("mkdir", "unlink", "rename", "replace", "utime", "rmdir", "chmod"):
        monkeypatch.setattr(os, name, refuse)
    return monkeypatch


@pytest.fixture(params=["told by permissions", "found out by trying"])
def unwritable(request, read_only):
    """The same, where `os.access` tells beforehand and where it does not."""
    if request.param == "found out by trying":
        read_only.setattr(os, "access", lambda *args, **kwargs: True)
    return request.param


def test_a_read_only_store_is_used(store, target, unwritable):  # fault 70
    before = files(store.root)
    handle = store.open(SPEC)
    assert missing_of(handle, range(14)) == [12, 13]
    assert handle.writable is (unwritable == "found out by trying")
    with handle.claim(keys_of([12]), wait=False) as mine:
        assert mine
    with handle.claim(keys_of([12]), wait=True) as mine, handle.claim(keys_of([12]), wait=True) as again:
        assert mine and again
    with pytest.raises(StorageError) as raised:
        add(handle, [12, 13])
    assert raised.value.exit_status == 74 and str(handle.path) in str(raised.value)
    handle.touch()
    assert [each.path for each in store.sets()] == [target.path]
    if unwritable == "told by permissions":
        assert verify(store) == []
    assert files(store.root) == before


def test_a_new_set_in_a_read_only_store(store, target, unwritable):  # fault 70
    before = files(store.root)
    empty = FeatureStore(store.root / "deeper" / "still").open(SPEC)
    assert missing_of(empty, [1]) == [0]
    with empty.claim(keys_of([1]), wait=True) as mine:
        assert mine
    with pytest.raises(StorageError):
        add(empty, [1])
    assert files(store.root) == before


@pytest.mark.parametrize("damage", ["flipped in the features", "flipped in the header", "deleted"])
def test_damage_in_a_read_only_store(store, damaged, unwritable, damage):  # faults 66, 70
    before = files(store.root)
    handle = store.open(SPEC)
    with pytest.warns(TransferkitWarning, match="is damaged, its 4 rows are computed again") as caught:
        assert missing_of(handle, range(12)) == [8, 9, 10, 11]
        assert missing_of(handle, range(12)) == [8, 9, 10, 11]
    assert len(caught) == 1
    assert files(store.root) == before


@pytest.fixture
def damaged(target, damage):
    DAMAGE[damage](shards_of(target)[2])
