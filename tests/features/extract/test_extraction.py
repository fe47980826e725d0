"""Extraction through the store: what is kept is not computed again, what differs in anything is never mixed up."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from engine_worker import (
    CLOSE,
    build,
    error,
    extract,
    extract_in_a_process,
    inputs,
    only,
    pictures_of,
    plain_rows,
    views_of,
)

from transferkit.data.augment.transform import train_transform
from transferkit.data.augment.views import Views, sample_seed
from transferkit.data.batches.dataset import ImageDataset, Job, Picture
from transferkit.data.images.decode import decode_image
from transferkit.features.engine import compute
from transferkit.features.engine.compute import FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extraction import pack
from transferkit.features.extract.rows import StoredRows, specs
from transferkit.features.store.store import FeatureStore
from transferkit.models.backbones.registry import create_backbone

# Children of a process that has loaded everything and computed nothing: quick to start, and safe to fork.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["engine_worker", "transferkit.features.extract.extract"])

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone():
    return build("test_resnet")


@pytest.fixture(scope="module")
def shapes(folder):
    return pictures_of(folder)


@pytest.fixture(scope="module")
def exact(backbone, shapes):
    return plain_rows(backbone, [picture.name for picture in shapes])


# --- the rows are right


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": 64}, {"threads": 3}])
def test_rows_are_those_of_a_plain_loop(shapes, backbone, store, exact, options):  # fault 71
    result = extract(shapes, backbone, store, **options)
    rows = only(result)
    assert rows.shape == (1, len(shapes), backbone.num_features)
    assert rows.dtype == np.float32
    assert error(rows[0], exact) <= CLOSE
    assert result.computed == len(shapes)
    assert result.failures == {}


def test_rows_do_not_depend_on_order_or_company(shapes, backbone, tmp_path, exact):
    usual = only(extract(shapes, backbone, FeatureStore(tmp_path / "usual"), views=2))
    order = np.random.default_rng(0).permutation(len(shapes))
    mixed = only(extract([shapes[at] for at in order], backbone, FeatureStore(tmp_path / "mixed"), views=2))
    few = only(extract(shapes[8:3:-1], backbone, FeatureStore(tmp_path / "few"), views=2))
    assert error(usual[0], exact) <= CLOSE
    assert error(mixed, usual[:, order]) <= CLOSE
    assert error(few, usual[:, 8:3:-1].copy()) <= CLOSE


def test_rows_from_the_store_are_the_same_bits(shapes, backbone, tmp_path, monkeypatch):
    """Wherever it was moved to; no file is looked at, and no network built."""
    first = only(extract(shapes, backbone, FeatureStore(tmp_path / "here")))
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(compute, "Engine", lambda *args, **options: pytest.fail("an engine was built"))
    order = np.random.default_rng(1).permutation(len(shapes))
    gone = [Picture("gone", shapes[at].sha256) for at in order]
    second = extract(gone, backbone, FeatureStore(tmp_path / "there"))
    assert second.computed == 0
    assert np.array_equal(only(second)[0], first[0, order])


def test_pixels_that_are_decoded_already(shapes, backbone, store, exact, decoded):
    side = backbone.data_config.decode_side
    known = [Picture("somewhere", each.sha256, decode_image(each.name, min_side=side)) for each in shapes]
    assert error(only(extract(known, backbone, store))[0], exact) <= CLOSE
    assert decoded == []


def test_all_depths_in_one_pass(shapes, backbone, store, decoded):
    result = extract(shapes, backbone, store, layer="all")
    assert sorted(decoded) == sorted(picture.name for picture in shapes)
    assert [tap.layer for tap in result.rows] == ["layer1", "layer2", "layer3", "layer4", "pooled"]
    for tap, rows in result.rows.items():
        alone = extract(shapes, backbone, FeatureStore(store.root / tap.layer), layer=tap.layer)
        assert error(rows, only(alone)) <= CLOSE
        again = extract(shapes, backbone, store, layer=tap.layer)  # its set is the one of "all"
        assert again.computed == 0
        assert np.array_equal(only(again), rows)


def test_progress_counts_to_the_end(shapes, backbone, store, monkeypatch):
    monkeypatch.setattr(compute, "CPU_CHUNK", 10)
    reports = []
    extract(shapes[:20], backbone, store)
    extract(shapes, backbone, store, progress=lambda done, total: reports.append((done, total)))
    assert {total for _, total in reports} == {len(shapes) - 20}
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1][0] == len(shapes) - 20
    (stored,) = store.sets()
    assert [shard.rows for shard in stored.manifest().shards] == [10, 10, 10, 10, 5]  # chunks are kept as they are done


# --- what is computed again, and what is not


def test_equal_pictures_are_computed_once(shapes, backbone, store, decoded):
    twice = [*shapes[:6], *shapes[:6], shapes[0]]
    result = extract(twice, backbone, store)
    rows = only(result)[0]
    assert result.computed == 6
    assert len(decoded) == 6
    assert np.array_equal(rows[:6], rows[6:12]) and np.array_equal(rows[0], rows[12])


def dark():
    """A backbone that expects other pictures."""
    other = build()
    other.data_config = dataclasses.replace(other.data_config, mean=(0.1, 0.2, 0.3))
    return other


def smooth():
    """The same weights in another structure."""
    other = build()
    replaced = [(parent, name) for parent in other.modules() for name, child in parent.named_children()
                if isinstance(child, torch.nn.ReLU)]  # fmt: skip
    for parent, name in replaced:
        setattr(parent, name, torch.nn.SiLU())
    return other


OTHERS = {  # what differs: the first extraction, and the other one
    "weights": ({}, {"made": lambda: build(seed=1)}),
    "architecture": ({"made": lambda: build("test_efficientnet")}, {"made": lambda: build("test_vit", size=160)}),
    "image size": ({}, {"made": lambda: build(size=40)}),
    "normalisation": ({}, {"made": dark}),
    "structure": ({}, {"made": smooth}),
    "layer": ({"layer": "layer1"}, {"layer": "layer2"}),
    "pool": ({"layer": "layer1", "pool": "avg"}, {"layer": "layer1", "pool": "max"}),
    "precision": ({}, {"precision": "bf16"}),
    "augmentation": ({}, {"augment": "light"}),
    "seed of the views": ({}, {"seed": 1}),
}


def with_one_view(some, store, backbone, *, made=None, augment="standard", seed=0, **options):
    backbone = made() if made else backbone
    return extract(some, backbone, store, views=views_of(backbone, 1, augment, seed), **options)


@pytest.mark.parametrize("what", list(OTHERS))
def test_another_value_is_another_row(what, shapes, backbone, tmp_path):  # fault 64
    some, (one, another) = shapes[:6], OTHERS[what]
    store = FeatureStore(tmp_path / "store")
    first = with_one_view(some, store, backbone, **one)
    second = with_one_view(some, store, backbone, **another)
    assert second.computed == len(some)
    assert np.array_equal(only(second), only(with_one_view(some, FeatureStore(tmp_path / "new"), backbone, **another)))
    assert not np.array_equal(only(second)[1], only(first)[1]), "nothing differs: this proves nothing"
    back = with_one_view(some, store, backbone, **one)
    assert back.computed == 0
    assert np.array_equal(only(back), only(first))


# --- views


def test_views_are_seeded_by_seed_number_and_picture_alone(shapes, backbone, store):  # fault 70
    views = views_of(backbone, 2, seed=5)
    rows = only(extract(shapes[:6], backbone, store, views=views))
    assert rows.shape == (3, 6, backbone.num_features)
    config = backbone.data_config
    for view in (1, 2):
        for at, picture in enumerate(shapes[:6]):
            pixels = decode_image(picture.name, min_side=config.decode_side)
            shown = train_transform("standard", config)(pixels, sample_seed(5, view, picture.sha256))
            with torch.no_grad():
                plain = backbone(inputs(backbone, torch.from_numpy(shown)[None]))[0]
            assert error(rows[view, at], plain) <= CLOSE
    assert not np.allclose(rows[0], rows[1]) and not np.allclose(rows[1], rows[2])


def test_the_evaluation_view_is_the_one_without_views(shapes, backbone, store, exact):  # fault 70
    rows = only(extract(shapes, backbone, store, views=1))
    assert error(rows[0], exact) <= CLOSE
    again = extract(shapes, backbone, store)
    assert (again.computed, len(only(again))) == (0, 1)
    assert sorted(each.spec.transform["name"] for each in store.sets()) == ["none", "standard"]


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 5}, {"workers": 1}, {"workers": 2}, {"threads": 2}]
)
def test_views_do_not_depend_on_how_they_are_computed(shapes, backbone, tmp_path, options):
    usual = only(extract(shapes[:9], backbone, FeatureStore(tmp_path / "usual"), views=2))
    other = only(extract(shapes[:9], backbone, FeatureStore(tmp_path / "other"), views=2, **options))
    assert error(other, usual) <= CLOSE


def test_more_views_leave_the_first_ones_as_they_are(shapes, backbone, store, monkeypatch):
    rendered = []
    render = Views.render
    monkeypatch.setattr(
        Views,
        "render",
        lambda self, pixels, sha, views, *whole: rendered.extend(views) or render(self, pixels, sha, views, *whole),
    )
    two = only(extract(shapes[:6], backbone, store, views=2))
    assert sorted(rendered) == [0] * 6 + [1] * 6 + [2] * 6
    rendered.clear()
    four = only(extract(shapes[:6], backbone, store, views=4))
    assert sorted(rendered) == [3] * 6 + [4] * 6
    assert np.array_equal(four[:3], two)
    rendered.clear()
    assert np.array_equal(only(extract(shapes[:6], backbone, store, views=1)), two[:2])
    assert rendered == []


@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_a_picture_is_decoded_once_for_all_its_views(shapes, backbone, store, decoded, batch_size):
    result = extract(shapes[:9], backbone, store, views=4, batch_size=batch_size)
    assert sorted(decoded) == sorted(picture.name for picture in shapes[:9])
    assert result.computed == 9
    assert np.isfinite(only(result)).all()


# --- batches


@pytest.mark.parametrize(
    ("views", "size", "expected"),
    [
        ([1, 1, 1, 1, 1], 2, [2, 2, 1]),
        ([3, 3, 3], 8, [2, 1]),
        ([5, 1, 1], 2, [1, 2]),
        ([5, 5], 2, [1, 1]),
        ([], 4, []),
        ([2, 2], 4, [2]),
    ],
)
def test_batches_hold_whole_pictures(views, size, expected):
    jobs = [(at, tuple(range(count))) for at, count in enumerate(views)]
    batches = pack(jobs, size)
    assert [len(batch) for batch in batches] == expected
    assert [job for batch in batches for job in batch] == jobs


def test_a_batch_without_a_readable_picture(tmp_path, backbone):
    (tmp_path / "bad.png").write_bytes(b"no")
    bad = Picture(str(tmp_path / "bad.png"), hashlib.sha256(b"no").hexdigest())
    batch = ImageDataset([bad], views_of(backbone)).batch([Job(0, (0,))])
    assert batch.images.shape == (0, 32, 32, 3)
    assert [error.path for error in batch.errors] == [bad.name]


# --- several processes


def start(tmp_path, name, folder, **arguments):
    report = tmp_path / f"{name}.json"
    options = {
        "data": str(folder), "backbone": "transferkit/mini", "image_size": 32, "precision": "32", "compile": "off",
        "batch_size": 2, "store": str(tmp_path / "store"),
    }  # fmt: skip
    process = FORKS.Process(target=extract_in_a_process, args=(options, report, 4), kwargs=arguments)
    process.start()
    return process, report


def finish(process, status=0):
    process.join(200)
    assert process.exitcode == status
    process.close()


def test_two_processes_compute_each_picture_once(folder, shapes, tmp_path):
    (tmp_path / "meet").mkdir()
    workers = [start(tmp_path, name, folder, meet=tmp_path / "meet", pause=0.02) for name in ("one", "two")]
    for process, _ in workers:
        finish(process)
    one, two = (json.loads(report.read_text(encoding="utf-8")) for _, report in workers)
    assert one["decoded"] + two["decoded"] == one["computed"] + two["computed"] == len(shapes)
    assert one["computed"] > 0 and two["computed"] > 0
    assert one["rows"] == two["rows"]
    rows = np.array(one["rows"], dtype=np.float32)
    assert error(rows, plain_rows(build_mini(), [picture.name for picture in shapes])) <= CLOSE


def build_mini():
    return create_backbone("transferkit/mini", image_size=32).eval()


def test_a_killed_process_loses_one_chunk_at_most(folder, shapes, tmp_path):  # fault 65
    process, report = start(tmp_path, "killed", folder, die_at=19)
    finish(process, -9)
    assert not report.exists()
    process, report = start(tmp_path, "next", folder)
    finish(process)
    facts = json.loads(report.read_text(encoding="utf-8"))
    done = 18  # decoded by the first before it died: four chunks of 4, and two pictures
    assert facts["computed"] == facts["decoded"] == len(shapes) - 4 * 4
    assert done + facts["decoded"] <= len(shapes) + 4
    rows = np.array(facts["rows"], dtype=np.float32)
    assert error(rows, plain_rows(build_mini(), [picture.name for picture in shapes])) <= CLOSE


def test_a_chunk_that_another_process_claims_is_left_to_it(shapes, backbone, store, monkeypatch, decoded):
    """The claimed chunk comes last: the others first, then a wait, then what its holder left undone."""
    monkeypatch.setattr(compute, "CPU_CHUNK", 5)
    taps, views = find_taps(backbone), views_of(backbone)
    other = StoredRows(shapes, views, specs(FrozenBackbone(backbone), taps, views, "32"), store)
    with contextlib.ExitStack() as held:
        assert held.enter_context(other.first.claim(other.keys(range(5)), wait=False))

        def let_go(done, total):
            if done == total - 5:
                assert shapes[0].name not in decoded
                held.close()

        result = extract(shapes, backbone, store, progress=let_go)
    assert result.computed == len(shapes)
    assert decoded == [picture.name for picture in [*shapes[5:], *shapes[:5]]]
