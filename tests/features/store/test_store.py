"""The feature store when all goes well: keys, round trips, several handles and processes, claims."""

import hashlib
import json
import os
import threading
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from store_workers import SPAWN, SPEC, WIDTH, add, fill, fill_blindly, hold_claim, key_of, keys_of, missing_of, rows_of

from transferkit.core.errors import StorageError, StoreError
from transferkit.features.store.featureset import FeatureSet
from transferkit.features.store.shards import KeyIndex, Shard, pack_keys
from transferkit.features.store.spec import FeatureSpec, row_key
from transferkit.features.store.store import FeatureStore
from transferkit.features.store.upkeep import verify

OTHER = {
    "backbone": "resnet34",
    "weights_sha256": "cd" * 32,
    "layer": "layer3",
    "pool": "max",
    "transform": {"size": 224, "mean": [0.485, 0.456, 0.4060001]},
    "decode_side": None,
    "precision": "bf16",
    "versions": {"torch": "2.15.1", "pillow": "12.0.0"},
}


@pytest.fixture
def target(store):
    return store.open(SPEC)


# --- keys


def test_the_key_is_the_sha256_of_canonical_json():
    # Written out: a change here would make every stored row worthless.
    text = (
        '{"backbone":"resnet18","decode_side":256,"format":1,"layer":"pooled","pool":"avg","precision":"32",'
        '"transform":{"mean":[0.485,0.456,0.406],"size":224},"versions":{"pillow":"12.0.0","torch":"2.15.0"},'
        '"weights_sha256":"' + "ab" * 32 + '"}'
    )
    assert SPEC.key == hashlib.sha256(text.encode()).hexdigest()
    assert SPEC.folder == f"resnet18-pooled-{SPEC.key[:16]}"


@pytest.mark.parametrize("name", [field.name for field in fields(FeatureSpec)])
def test_any_other_value_is_another_key(name, store, target):  # fault 64
    other = replace(SPEC, **{name: OTHER[name]})
    assert other.key != SPEC.key and other != SPEC
    add(target, range(3))
    assert missing_of(store.open(other), range(3)) == [0, 1, 2]
    assert not missing_of(target, range(3))


def test_another_format_is_another_key(monkeypatch):  # fault 64
    before = SPEC.key
    monkeypatch.setattr("transferkit.features.store.spec.FORMAT", 2)
    assert SPEC.key != before


def test_the_order_of_a_mapping_is_not_part_of_the_key():
    turned = replace(SPEC, transform=dict(reversed(SPEC.transform.items())))
    assert turned == SPEC and hash(turned) == hash(SPEC) and len({turned, SPEC}) == 1


def test_a_spec_keeps_its_own_copy():
    transform = {"mean": [1, 2]}
    spec = replace(SPEC, transform=transform)
    before = spec.key
    transform["mean"].append(3)
    assert spec.key == before
    assert replace(SPEC, transform={"mean": (1, 2)}) == spec


def test_a_spec_through_json():
    assert FeatureSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize(
    "values", [{}, {**SPEC.to_dict(), "extra": 1}, {**SPEC.to_dict(), "layer": None}, [*SPEC.to_dict()]]
)
def test_no_spec(values):
    with pytest.raises(ValueError, match="of a feature spec|a feature spec holds"):
        FeatureSpec.from_dict(values)


def test_a_spec_of_nan_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(SPEC, transform={"mean": float("nan")})


def test_folder_names_are_plain():
    spec = replace(SPEC, backbone="hf-hub:me/my model é", layer="../x" + "y" * 300)
    assert spec.folder == f"hf_hub_me_my_model__-{'_x' + 'y' * 78}-{spec.key[:16]}"
    assert replace(SPEC, backbone="...").folder.startswith("_-pooled-")


def test_row_keys(target):
    digest = "01" * 31 + "ff"
    assert row_key(digest) == b"\x01" * 31 + b"\xff" + b"\0" * 8
    assert row_key(digest, 258) == b"\x01" * 31 + b"\xff" + b"\x02\x01\0\0\0\0\0\0"
    assert len(row_key(digest, 2**64 - 1)) == 40
    for bad in ((digest[:-2], 0), (digest, -1), (digest, 2**64), ("zz" * 32, 0)):
        with pytest.raises(ValueError):
            row_key(*bad)
    # Keys that end in zeros stay apart.
    keys = [row_key("ab" * 31 + "00"), row_key("ab" * 30 + "0000"), row_key("00" * 32), row_key("00" * 32, 2**56)]
    target.add(keys, rows_of(range(4)))
    out = np.empty((4, WIDTH), np.float32)
    assert target.read(keys, out) == [] and np.array_equal(out, rows_of(range(4)))
    assert target.read([row_key("ab" * 31 + "01")], out[:1]) == [0]


# --- rows in, rows out


def test_nothing_is_created_before_the_first_write(store, target):
    assert missing_of(target, range(2)) == [0, 1]
    assert target.width() is None and target.failures(keys_of(range(2))) == {} and store.sets() == []
    target.touch()
    target.add([], np.empty((0, WIDTH), np.float32))
    assert not store.root.exists() and target.writable


def test_round_trip_bit_exact(store, target):
    rows = rows_of(range(5))
    rows[0] = [0.0, -0.0, 1e-45, -1e-38, 3.4028235e38, -3.4028235e38, 1.17549435e-38, np.pi]
    target.add(keys_of(range(5)), rows)
    for handle in (target, store.open(SPEC)):
        out = np.empty_like(rows)
        assert handle.read(keys_of(range(5)), out) == [] and out.tobytes() == rows.tobytes()
        assert handle.width() == WIDTH


def test_any_order_and_repeats(target):
    add(target, range(4))
    add(target, range(4, 9))
    assert missing_of(target, [8, 0, 100, 3, 8, 101, 4]) == [2, 5]


def test_views_of_a_picture_are_rows_of_their_own(target):
    keys = [key_of(7, seed) for seed in (0, 1, 2, 256)]
    target.add(keys[:3], rows_of(range(3)))
    out = np.zeros((4, WIDTH), np.float32)
    assert target.read(keys, out) == [3]
    assert np.array_equal(out[:3], rows_of(range(3))) and not out[3].any()


def test_fifty_more_pictures_are_fifty_more_rows(store, target):
    add(store.open(SPEC), range(200))  # each handle sees what the other adds
    before = {path.name: path.read_bytes() for path in target.path.glob("*.safetensors")}
    assert missing_of(target, range(250)) == list(range(200, 250))
    add(target, range(250))
    assert [shard.rows for shard in store.open(SPEC).manifest().shards] == [200, 50]
    assert not missing_of(target, range(250))
    assert all((target.path / name).read_bytes() == data for name, data in before.items())


def test_adding_what_is_there_writes_nothing(target):  # fault 67
    add(target, range(5))
    before = {path: path.stat().st_mtime_ns for path in target.path.iterdir() if path.name != "set.json"}
    target.add(keys_of(range(5)), rows_of(range(5, 10)))
    assert before == {path: path.stat().st_mtime_ns for path in target.path.iterdir() if path.name != "set.json"}
    assert not missing_of(target, range(5))


def test_of_a_key_that_comes_twice_the_first_row_counts(target):
    target.add(keys_of([3, 1, 3, 2, 1]), rows_of([3, 1, 30, 2, 10]))
    assert not missing_of(target, [1, 2, 3])
    assert target.manifest().shards[0].rows == 3


def test_files_on_disk(store, target):
    add(target, range(3))
    shard = target.manifest().shards[0]
    path = target.path / shard.file
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tensors = load_file(path)
    assert np.array_equal(tensors["features"], rows_of(range(3)))
    assert tensors["keys"].dtype == np.uint8 and tensors["keys"].tobytes() == b"".join(keys_of(range(3)))
    assert json.loads((target.path / "manifest.json").read_text(encoding="utf-8")) == {
        "format": 1,
        "width": WIDTH,
        "shards": [{"file": f"{digest[:24]}.safetensors", "rows": 3, "bytes": path.stat().st_size, "sha256": digest}],
        "failures": {},
    }
    assert json.loads((target.path / "set.json").read_text(encoding="utf-8")) == {"format": 1, "spec": SPEC.to_dict()}
    assert sorted(path.name for path in target.path.iterdir()) == sorted(
        [path.name, "lock", "manifest.json", "set.json"]
    )


def test_unreadable_pictures_are_recorded_and_shift_nothing(store, target):  # fault 69
    target.add(keys_of([0, 2]), rows_of([0, 2]), {key_of(1): "truncated JPEG"})
    other = store.open(SPEC)
    assert other.failures(keys_of([2, 1, 0, 5])) == {1: "truncated JPEG"}
    assert missing_of(other, [0, 1, 2]) == [1]


def test_failures_alone_and_their_end(target):  # fault 69
    target.add([], np.empty((0, WIDTH), np.float32), {key_of(1): "cannot be read", key_of(2): "empty"})
    assert target.width() is None and target.failures(keys_of([1, 2])) == {0: "cannot be read", 1: "empty"}
    add(target, [1])  # it could be read after all
    target.add([], np.empty((0, WIDTH), np.float32), {key_of(1): "what has a row is no failure"})
    assert target.failures(keys_of([1, 2])) == {1: "empty"} and not missing_of(target, [1])


def test_widths_must_agree(target):
    add(target, range(3))
    before = (target.path / "manifest.json").read_bytes()
    with pytest.raises(StoreError, match=r"rows have 9 features, the set's have 8 - .*remove the set"):
        target.add(keys_of([5]), rows_of([5], width=9))
    with pytest.raises(StoreError, match=r"go into float32 \(3, 9\), expected float32 \(3, 8\)"):
        target.read(keys_of(range(3)), np.empty((3, 9), np.float32))
    with pytest.raises(StoreError, match=r"go into float64 \(3, 8\)"):
        target.read(keys_of(range(3)), np.empty((3, 8)))
    with pytest.raises(StoreError, match=r"2 row keys came with features of shape \(3, 8\)"):
        target.add(keys_of(range(2)), rows_of(range(3)))
    with pytest.raises(ValueError, match="does not have 40 bytes"):
        target.read([b"short"], np.empty((1, 8), np.float32))
    assert (target.path / "manifest.json").read_bytes() == before and len(list(target.path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_by_position(target, value):  # fault 71
    rows = rows_of(range(5))
    rows[1, 3] = rows[4, 0] = value
    with pytest.raises(StoreError, match="2 of 5 rows of features hold NaN or infinity, .* position 1") as raised:
        target.add(keys_of(range(5)), rows)
    assert raised.value.exit_status == 7
    assert not target.path.exists()


def test_what_overflows_float32_is_not_finite(target):  # fault 71
    with pytest.raises(StoreError, match="1 of 1 rows .* infinity"):
        target.add(keys_of([1]), np.full((1, WIDTH), 1e39))


def test_only_shards_that_hold_a_key_are_read(target, monkeypatch):
    for start in range(0, 20, 5):
        add(target, range(start, start + 5))
    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or original(path))
    missing_of(target, [6, 8, 17, 99])
    shards = [shard.file for shard in target.manifest().shards]
    assert sorted(name for name in read if name.endswith(".safetensors")) == sorted([shards[1], shards[3]])


def test_the_index_against_a_dictionary():
    generator = np.random.default_rng(0)
    index, known = KeyIndex(), {}
    for number in range(30):
        keys = [key_of(int(n), int(n) % 3) for n in generator.choice(500, generator.integers(1, 9), replace=False)]
        index = index.extended([(Shard(str(number), len(keys), 0, ""), pack_keys(keys))])
        for row, key in enumerate(keys):
            known.setdefault(key, (number, row))
    keys = [key_of(n, seed) for n in range(500) for seed in range(3)]
    shard, row = index.find(pack_keys(keys))
    assert [known.get(key, (-1, None))[0] for key in keys] == shard.tolist()
    assert all(row[at] == known[key][1] for at, key in enumerate(keys) if key in known)


# --- the store


def test_the_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FeatureStore().root == tmp_path / "transferkit" / "features"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert FeatureStore().root == tmp_path / "home" / ".cache" / "transferkit" / "features"


def test_sets(store):
    specs = [SPEC, replace(SPEC, backbone="vit"), replace(SPEC, backbone="Alex")]
    for spec in specs:
        store.open(spec).add(keys_of([1]), rows_of([1]))
    (store.root / "notes").mkdir()
    (store.root / "file").write_text("", encoding="utf-8")
    sets = store.sets()
    assert [each.spec for each in sets] == sorted(specs, key=lambda spec: spec.folder)
    assert all(isinstance(each, FeatureSet) and not missing_of(each, [1]) for each in sets)


def test_space_is_asked_for_at_the_nearest_folder(store, monkeypatch):  # fault 68
    places = []

    def usage(path):
        places.append(path)
        return type("Usage", (), {"free": 100 * 2**20})

    monkeypatch.setattr("shutil.disk_usage", usage)
    store.require_space(36 * 2**20)
    with pytest.raises(
        StorageError, match=r"store' needs 37,748,737 bytes and a reserve of .* has 104,857,600 free"
    ) as e:
        store.require_space(36 * 2**20 + 1)
    assert e.value.exit_status == 74
    assert set(places) == {store.root.parent} and not store.root.exists()


def test_touch_marks_as_used(target):
    add(target, [1])
    os.utime(target.path / "set.json", (1, 1))
    target.touch()
    assert (target.path / "set.json").stat().st_mtime > 1
    os.utime(target.path / "set.json", (1, 1))
    add(target, [2])
    assert (target.path / "set.json").stat().st_mtime > 1


# --- several at once


def test_writers_in_several_processes(store):  # fault 67
    chunks = [list(range(start, start + 10)) for start in range(0, 120, 5)]  # each row is in two chunks
    barrier = SPAWN.Barrier(3)
    processes = [
        SPAWN.Process(target=fill_blindly, args=(store.root, part, barrier))
        for part in (chunks, chunks[::-1], chunks[::2] + chunks[1::2])
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    target = store.open(SPEC)
    assert not missing_of(target, range(125))
    assert sum(shard.rows for shard in target.manifest().shards) == 125
    assert verify(store) == []


def test_a_reader_beside_a_writer(store):  # fault 67
    chunks = [list(range(start, start + 4)) for start in range(0, 120, 4)]
    ready = SPAWN.Event()
    writer = SPAWN.Process(target=fill, args=(store.root, chunks, 0, ready))
    writer.start()
    assert ready.wait(60)
    handle, counts = store.open(SPEC), []
    while writer.exitcode is None or len(counts) < 2:
        missing = missing_of(handle, range(120))
        assert len(missing) % 4 == 0  # a shard is there whole or not at all
        counts.append(120 - len(missing))
        if not missing:
            break
    writer.join(60)
    assert writer.exitcode == 0 and counts == sorted(counts) and not missing_of(handle, range(120))


def test_what_a_reader_sees_at_each_step_of_a_write(store, target, monkeypatch):  # fault 67
    add(target, range(3))
    missing = []
    original = Path.replace

    def watched(path, to):
        missing.append(missing_of(store.open(SPEC), range(6)))
        result = original(path, to)
        missing.append(missing_of(store.open(SPEC), range(6)))
        return result

    monkeypatch.setattr(Path, "replace", watched)
    add(target, range(3, 6))
    # shard before and after, manifest before and after
    assert missing == [[3, 4, 5], [3, 4, 5], [3, 4, 5], []]


def test_claims(store, target):
    chunk, other = keys_of(range(4)), keys_of(range(4, 8))
    handle = store.open(SPEC)
    with target.claim(chunk, wait=False) as mine:
        assert mine
        with handle.claim(chunk, wait=False) as theirs, handle.claim(other, wait=False) as free:
            assert not theirs and free
        with handle.claim(chunk, wait=False) as theirs:  # the refused one has not removed it
            assert not theirs
    with pytest.raises(RuntimeError), handle.claim(chunk, wait=False) as mine:
        assert mine
        raise RuntimeError
    assert list((target.path / "claims").iterdir()) == []


def test_waiting_for_a_claim(store, target):  # fault 67
    got, read = threading.Event(), []

    def wait():
        handle = store.open(SPEC)
        with handle.claim(keys_of(range(4)), wait=True) as mine:
            read.append((mine, not missing_of(handle, range(4))))
            got.set()

    thread = threading.Thread(target=wait)
    with target.claim(keys_of(range(4)), wait=False):
        thread.start()
        assert not got.wait(0.3)
        add(target, range(4))
    assert got.wait(60)
    thread.join()
    assert read == [(True, True)]


def test_a_claim_of_a_killed_process_is_free(store, target):  # fault 65
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold_claim, args=(store.root, range(4), ready))
    process.start()
    assert ready.wait(60)
    with target.claim(keys_of(range(4)), wait=False) as mine:
        assert not mine
    process.kill()
    process.join()
    with target.claim(keys_of(range(4)), wait=True) as mine:
        assert mine
