"""Upkeep of the feature store: each kind of finding of `verify`, each kind of removal of `gc`."""

import errno
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from store_workers import SPAWN, SPEC, WIDTH, add, hold_claim, key_of, keys_of, missing_of, rows_of

from transferkit.core.errors import StorageError, TransferkitWarning
from transferkit.core.locks import hold
from transferkit.features.store.shards import Manifest, build_shard, pack_keys, write_manifest
from transferkit.features.store.upkeep import Problem, Removal, SetSummary, describe, gc, verify

OTHER = replace(SPEC, backbone="vit")
ORPHAN = "0" * 24 + ".safetensors"


@pytest.fixture
def target(store):
    """A set of rows 0-3 and 4-7, in two shards; and another set beside it."""
    target = store.open(SPEC)
    add(target, range(4))
    add(target, range(4, 8))
    add(store.open(OTHER), range(3))
    return target


def listing(store):
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.name != "lock")


def put(target, keys, rows):
    """List a shard in the manifest that `add` would have refused."""
    shard, data = build_shard(pack_keys(keys), rows)
    (target.path / shard.file).write_bytes(data)
    manifest = target.manifest()
    write_manifest(target.path, Manifest(WIDTH, (*manifest.shards, shard), manifest.failures))
    return shard


def problems_of(store):
    return [(problem.file, problem.what) for problem in verify(store)]


def size_of(target):
    return sum(path.stat().st_size for path in target.path.rglob("*") if path.is_file())


# --- describe


def test_describe(store, target):
    target.add([], np.empty((0, WIDTH), np.float32), {key_of(99): "empty"})
    os.utime(target.path / "set.json", (1000, 86400))
    one, two = describe(store)
    size = sum(path.stat().st_size for path in target.path.glob("*.safetensors"))
    assert one == SetSummary(SPEC.folder, SPEC, 8, 1, size, datetime(1970, 1, 2, tzinfo=UTC))
    assert (two.folder, two.rows, two.failures) == (OTHER.folder, 3, 0)
    assert abs(two.last_used.timestamp() - time.time()) < 3600


def test_describe_what_is_damaged(store, target):
    (target.path / "manifest.json").write_bytes(b"{")
    (store.open(OTHER).path / "set.json").write_bytes(b"{")
    with pytest.warns(TransferkitWarning, match="manifest.json is damaged"):
        assert [(summary.folder, summary.rows) for summary in describe(store)] == [(SPEC.folder, 0)]


def test_an_empty_store(store):
    assert describe(store) == [] and verify(store) == []
    assert gc(store, unused_days=0).removed == () and not store.root.exists()


# --- verify


def test_a_sound_store_with_progress(store, target):
    calls, before = [], listing(store)
    assert verify(store, lambda done, total: calls.append((done, total))) == []
    assert calls == [(1, 3), (2, 3), (3, 3)]
    os.utime(target.path / "set.json", (0, 0))
    target.touch()
    report = gc(store, unused_days=1)
    assert (report.removed, report.skipped, report.freed) == ((), (), 0) and listing(store) == before


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: os.truncate(path, 100), "has 100 bytes, expected "),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"), "does not have the recorded sha256"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_verify_finds_damaged_shards(store, target, damage, what):  # fault 66
    shard = target.manifest().shards[1]
    damage(target.path / shard.file)
    (problem,) = verify(store)
    assert (problem.folder, problem.file) == (SPEC.folder, shard.file) and problem.what.startswith(what)
    assert verify(store) == [problem]  # nothing was changed


def test_verify_finds_wrong_content(store, target):
    narrow = put(target, keys_of([20]), rows_of([20], width=5))
    double = put(target, keys_of([21]), rows_of([21]).astype(np.float64))
    short = put(target, keys_of([22, 23]), rows_of([22]))
    infinite = put(target, keys_of([24]), rows_of([24]) * np.float32(np.inf))
    assert problems_of(store) == [
        (narrow.file, "holds float32 features of shape (1, 5), expected float32 (1, 8)"),
        (double.file, "holds float64 features of shape (1, 8), expected float32 (1, 8)"),
        (short.file, "holds float32 features of shape (1, 8), expected float32 (2, 8)"),
        (infinite.file, "holds NaN or infinity"),
    ]


def test_verify_finds_keys_that_are_there_twice(store, target):
    inside = put(target, keys_of([20, 20, 21]), rows_of([20, 20, 21]))
    across = put(target, keys_of([3, 22, 7]), rows_of([3, 22, 7]))
    assert problems_of(store) == [
        (inside.file, "holds 1 row keys twice, and 0 that other shards hold too"),
        (across.file, "holds 0 row keys twice, and 2 that other shards hold too"),
    ]


def test_verify_finds_what_is_not_listed(store, target):
    (target.path / ORPHAN).write_bytes(b"x")
    (target.path / f".{ORPHAN}.abc.tmp").write_bytes(b"x")
    (target.path / "notes.txt").write_text("mine", encoding="utf-8")
    (store.root / f".{SPEC.folder}.abc.tmp").mkdir()
    assert verify(store) == [
        Problem(f".{SPEC.folder}.abc.tmp", "", "is a leftover of a removed set"),
        Problem(SPEC.folder, f".{ORPHAN}.abc.tmp", "is a leftover of an unfinished write"),
        Problem(SPEC.folder, ORPHAN, "is an orphan: no manifest lists it"),
    ]
    with hold(target.path / "lock", wait=False):  # perhaps they are being written at this moment
        assert len(verify(store)) == 1


@pytest.mark.parametrize("name", ["set.json", "manifest.json"])
def test_verify_finds_damaged_descriptions(store, target, name):
    (target.path / name).write_bytes(b"{")
    problems = problems_of(store)
    assert problems[0] == (name, "is damaged, its set counts as empty")
    assert {what for _, what in problems[1:]} == {"is an orphan: no manifest lists it"} and len(problems) == 3


def test_verify_finds_newer_formats(store, target):
    path = target.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "format": 7}), encoding="utf-8")
    assert [what.split(": ")[1].split(",")[0] for _, what in problems_of(store)] == ["has format 7"]


def test_verify_says_nothing_about_a_shard_that_was_dropped_meanwhile(store, target):
    shard = target.manifest().shards[1]
    (target.path / shard.file).write_bytes(b"")

    def progress(done, total):
        if done == 1:
            with pytest.warns(TransferkitWarning):
                missing_of(target, range(8))

    assert verify(store, progress) == []


# --- gc


def both(store, expected, **options):
    """Run gc dry, when nothing may change, then really."""
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    dry = gc(store, dry_run=True, **options)
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before
    report = gc(store, **options)
    assert dry.dry_run and not report.dry_run and (dry.removed, dry.skipped) == (report.removed, report.skipped)
    assert list(report.removed) == expected
    assert gc(store, **options).removed == ()
    return report


def test_gc_of_leftovers_and_orphans(store, target):
    before = listing(store)
    (target.path / ORPHAN).write_bytes(b"123")
    (target.path / f".{ORPHAN}.abc.tmp").write_bytes(b"12345")
    (store.root / f".{SPEC.folder}.abc.tmp").mkdir()
    (store.root / f".{SPEC.folder}.abc.tmp" / "set.json").write_bytes(b"1234567")
    report = both(
        store,
        [
            Removal(f".{SPEC.folder}.abc.tmp", "", "is a leftover of a removed set", 7),
            Removal(SPEC.folder, f".{ORPHAN}.abc.tmp", "is a leftover of an unfinished write", 5),
            Removal(SPEC.folder, ORPHAN, "is an orphan: no manifest lists it", 3),
        ],
    )
    assert report.freed == 15 and listing(store) == before and missing_of(target, range(8)) == []


def test_gc_of_damaged_and_missing_shards(store, target):  # fault 66
    add(target, [50])
    first, second, _ = target.manifest().shards
    (target.path / first.file).write_bytes(b"short")
    (target.path / second.file).unlink()
    both(
        store,
        [
            Removal(SPEC.folder, first.file, f"is damaged: it has 5 bytes, expected {first.bytes}", 5),
            Removal(SPEC.folder, second.file, "is damaged: it is missing", 0),
        ],
    )
    assert verify(store) == [] and missing_of(target, [*range(8), 50]) == list(range(8))


@pytest.mark.filterwarnings("ignore:.* is damaged, its 4 rows are computed again")
def test_gc_of_a_set_whose_shards_are_all_damaged(store, target):
    for shard in target.manifest().shards:
        (target.path / shard.file).write_bytes(b"x")
    both(store, [Removal(SPEC.folder, "", "holds no rows", size_of(target))])
    assert not target.path.exists() and missing_of(target, [1]) == [0]
    add(target, [1])
    assert missing_of(store.open(SPEC), [1]) == []


def test_gc_of_dead_claims(store, target):
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold_claim, args=(store.root, range(20, 24), ready))
    process.start()
    assert ready.wait(60)
    assert gc(store).removed == ()
    process.kill()
    process.join()
    (name,) = (path.name for path in (target.path / "claims").iterdir())
    both(store, [Removal(SPEC.folder, f"claims/{name}", "is a claim of a dead process", 0)])


@pytest.mark.parametrize("name", ["set.json", "manifest.json"])
def test_gc_of_damaged_sets(store, target, name):
    (target.path / name).write_bytes(b"{")
    both(store, [Removal(SPEC.folder, "", f"its {name} is damaged", size_of(target))])
    assert [path.name for path in store.root.iterdir()] == [OTHER.folder]


def test_gc_of_empty_sets(store, target):
    with store.open(replace(SPEC, layer="a")).claim(keys_of([1]), wait=False):
        report = gc(store)
        assert report.removed == () and len(report.skipped) == 1
        assert "holds no rows, but another process is computing rows for it" in report.skipped[0]
    store.open(replace(SPEC, layer="b")).add(
        [], np.empty((0, 1), np.float32), {key_of(1): "what fails is worth keeping"}
    )
    killed = store.open(replace(SPEC, layer="c")).path  # as left by a writer killed before its first file
    killed.mkdir()
    (killed / "lock").write_text("", encoding="utf-8")
    assert [removal.folder for removal in gc(store).removed] == sorted(
        [replace(SPEC, layer="a").folder, replace(SPEC, layer="c").folder]
    )
    assert len(store.sets()) == 3


def test_gc_of_unused_sets(store, target):
    long_ago = time.time() - 10.5 * 86400
    os.utime(target.path / "set.json", (long_ago, long_ago))
    assert gc(store, unused_days=11).removed == () and gc(store).removed == ()
    size = size_of(target)
    with store.open(SPEC).claim(keys_of([1]), wait=False):
        assert "was not used for 10 days, but another process" in gc(store, unused_days=10).skipped[0]
    both(store, [Removal(SPEC.folder, "", "was not used for 10 days", size)], unused_days=10)
    assert [each.spec for each in store.sets()] == [OTHER]


def test_gc_leaves_a_busy_set_alone(store, target):
    (target.path / ORPHAN).write_bytes(b"perhaps about to be listed")
    (store.open(OTHER).path / ORPHAN).write_bytes(b"x")
    with hold(target.path / "lock", wait=False):
        report = gc(store, unused_days=0)
    assert [removal.folder for removal in report.removed] == [OTHER.folder]
    assert len(report.skipped) == 1 and f"{SPEC.folder}: another process is writing to it" in report.skipped[0]
    assert (target.path / ORPHAN).exists()


def test_gc_removes_only_what_is_the_stores(store, target):
    own = store.root / "photos-0123456789abcdef"
    own.mkdir()
    (own / "cat.jpg").write_text("", encoding="utf-8")
    (store.root / "notes").mkdir()
    (target.path / "thesis.tex").write_text("dear", encoding="utf-8")
    os.utime(target.path / "set.json", (0, 0))
    report = gc(store, unused_days=1)
    assert report.removed == () and "holds files that are not the store's" in report.skipped[0]
    assert [path.name for path in own.iterdir()] == ["cat.jpg"] and (target.path / "thesis.tex").exists()
    assert missing_of(target, range(8)) == []


def test_gc_of_a_store_that_cannot_be_written(store, target, monkeypatch):
    before = listing(store)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StorageError, match="Operation not permitted"):
        gc(store, unused_days=0)
    assert listing(store) == before
