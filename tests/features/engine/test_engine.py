"""The engine: batches of any size, compiling where it pays and only there, bf16 where it is exact and faster."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_worker import build, error, own, pictures_of, plain_rows, prepared, small_net
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from transferkit.data.batches.augment import eval_transform
from transferkit.features.engine import compute, engine
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import (
    COMPILE_S,
    COSINE,
    GAIN,
    SPEED_UP,
    Engine,
    choose_feature_precision,
    settled_precision,
)
from transferkit.features.engine.network import FeatureNetwork
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.extract.pictures import Picture, Views
from transferkit.features.store.store import FeatureStore

CLOSE = 1e-5


def images_of(backbone, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *backbone.data_config.image_size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def backbone():
    return build("test_resnet")


@pytest.fixture(scope="module")
def small():
    return own(small_net())


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- batches


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_do_not_depend_on_the_batch(backbone, folder, size):  # fault 71
    names = [picture.name for picture in pictures_of(folder)[:7]]
    exact = plain_rows(backbone, names)
    ours = Engine(backbone, find_taps(backbone), compiling="off")
    images = torch.cat([prepared(backbone, name) for name in names])
    rows = torch.cat([ours.rows(part)[0] for part in images.split(size)])
    assert rows.dtype == torch.float32
    assert error(rows, exact) <= CLOSE


def test_widths_are_known_before_the_first_picture(backbone):
    ours = Engine(backbone, find_taps(backbone, "all", "avgmax"), compiling="off")
    assert ours.widths == tuple(row.shape[1] for row in ours.rows(images_of(backbone, 2)))
    assert ours.widths[-1] == 2 * backbone.map_channels


# --- compiling


@pytest.mark.parametrize("layer", ["pooled", "all"])
def test_compiled_rows_are_the_same_and_a_short_batch_is_padded(small, layer):
    taps = find_taps(small, layer)
    images = images_of(small, 8)
    exact = Engine(small, taps, compiling="off").rows(images)
    ours = Engine(small, taps, compiling="on", batch=8)
    assert not ours.is_compiled
    first = ours.rows(images)
    assert ours.is_compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        parts = [ours.rows(images[:3]), ours.rows(images[3:4]), ours.rows(images[4:8])]
        again = ours.rows(images)
        more = ours.rows(images.repeat(2, 1, 1, 1))  # larger than what was compiled for
    for at, plain in enumerate(exact):
        assert error(first[at], plain) <= CLOSE
        assert error(torch.cat([part[at] for part in parts]), plain) <= CLOSE
        assert error(again[at], plain) <= CLOSE
        assert error(more[at], plain.repeat(2, 1)) <= CLOSE


def test_rows_of_compiled_code_are_not_written_over(small):
    ours = Engine(small, find_taps(small), compiling="on", batch=4)
    first = ours.rows(images_of(small, 4))[0]
    kept = first.clone()
    ours.rows(images_of(small, 4, seed=1))
    assert torch.equal(first, kept)


def test_a_small_first_batch_does_not_leave_the_larger_ones_in_eager_mode(small, monkeypatch):
    """An engine lives as long as the process: five new pictures today, thousands in the next call."""
    made = []

    def fake_compile(network, **options):
        def run(images):
            made.append(len(images))
            return network(images)

        return run

    monkeypatch.setattr(torch, "compile", fake_compile)
    ours = Engine(small, find_taps(small), compiling="on", batch=8)
    ours.rows(images_of(small, 2))
    made.clear()
    for _ in range(4):
        ours.rows(images_of(small, 8))
    assert 8 in made


def raising(*args, **options):
    raise RuntimeError("no C++ compiler here\nand a second line")


@pytest.mark.parametrize("where", ["at once", "when run"])
def test_without_a_compiler_it_goes_on_in_eager_mode(small, monkeypatch, caplog, where):
    monkeypatch.setattr(torch, "compile", raising if where == "at once" else lambda network, **options: raising)
    images = images_of(small, 4)
    exact = Engine(small, find_taps(small), compiling="off").rows(images)[0]
    ours = Engine(small, find_taps(small), compiling="on", batch=4)
    with caplog.at_level(logging.INFO, "transferkit"):
        for _ in range(3):
            assert torch.equal(ours.rows(images)[0], exact)
    assert not ours.is_compiled
    assert [record.getMessage() for record in caplog.records] == [
        "not compiled (RuntimeError: no C++ compiler here); going on in eager mode"
    ]


def test_a_compiler_that_was_missing_once_is_not_given_up_for_good(small, monkeypatch, tmp_path, folder):
    monkeypatch.setattr(torch, "compile", lambda network, **options: raising)
    options = Compute(precision="32", compiling="on", batch_size=4)
    taps, store = find_taps(small), FeatureStore(tmp_path / "store")
    extract_pictures(pictures_of(folder)[:8], FrozenBackbone(small), taps, views_of(small), store, options)
    frozen = FrozenBackbone(small)  # as in the next process
    later = Compute(precision="32", compiling="auto", batch_size=4)
    assert frozen.engine(taps, "32", later, frozen.memory(taps, later, store)).gain > 1


@pytest.mark.slow
def test_a_missing_compiler_in_a_real_process(tmp_path):
    script = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from test_engine import *\n"
        "small = own(small_net())\n"
        "ours = Engine(small, find_taps(small), compiling='on')\n"
        "images = images_of(small, 4)\n"
        "exact = Engine(small, find_taps(small), compiling='off').rows(images)[0]\n"
        "same = all(torch.equal(ours.rows(images)[0], exact) for _ in range(2))\n"
        "print(same, ours.is_compiled)\n"
    )
    place = os.path.dirname(__file__)  # noqa: PTH120  # for a path of modules
    environment = {
        **os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": place, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout == "True False\n", done.stderr[-2000:]
    told = [line for line in done.stderr.splitlines() if "eager mode" in line]
    assert len(told) == 1
    assert told[0].startswith("not compiled (")


class World:
    """A machine whose clock moves by what forward passes and compiling are said to cost."""

    eager_s, compiled_s, compile_s = 0.1, 0.05, 20.0

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.compilations = 0
        self.inside = False
        forward = FeatureNetwork.forward

        def slow(network, images):
            if not self.inside:
                self.now += self.eager_s
            return forward(network, images)

        def fake_compile(network, **options):
            self.compilations += 1
            ready = []

            def run(images):
                self.now += self.compiled_s if ready else self.compile_s
                ready.append(True)
                self.inside = True
                try:
                    return network(images)
                finally:
                    self.inside = False

            return run

        monkeypatch.setattr(FeatureNetwork, "forward", slow)
        monkeypatch.setattr(torch, "compile", fake_compile)
        monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


# At 0.1 s for 4 pictures and a gain of 1.3, compiling saves left * 0.025 * (1 - 1 / 1.3): 30 s at 5200 pictures.
BREAK_EVEN = int(COMPILE_S / (0.025 * (1 - 1 / GAIN)))


@pytest.mark.parametrize(("left", "pays"), [(0, False), (BREAK_EVEN - 10, False), (BREAK_EVEN + 10, True)])
def test_compiles_when_the_pictures_pay_for_it(world, small, left, pays):
    ours = Engine(small, find_taps(small), batch=4)
    for _ in range(12):
        ours.rows(images_of(small, 4), left=left)
    assert ours.is_compiled == pays
    assert world.compilations == pays
    if pays:
        assert ours.gain == pytest.approx(2.0)
        assert ours.compile_s == pytest.approx(20.0)
        assert ours.measured
    else:
        assert (ours.gain, ours.compile_s, ours.measured) == (GAIN, COMPILE_S, False)


def test_three_batches_are_timed_before_it_decides(world, small):
    ours = Engine(small, find_taps(small), batch=4)
    compiled = []
    for _ in range(5):
        ours.rows(images_of(small, 4), left=10**9)
        compiled.append(ours.is_compiled)
    assert compiled == [False, False, False, True, True]


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_gain_that_was_none_before_is_not_tried_again(world, small, gain):
    ours = Engine(small, find_taps(small), gain=gain, batch=4)
    for _ in range(12):
        ours.rows(images_of(small, 4), left=10**9)
    assert world.compilations == 0


def test_what_was_measured_before_decides(world, small):
    """Twice as fast after 1 s: it pays from 1 / (0.025 / 2) = 80 pictures on."""
    for left, pays in ((79, False), (81, True)):
        ours = Engine(small, find_taps(small), gain=2.0, compile_s=1.0, batch=4)
        for _ in range(4):
            ours.rows(images_of(small, 4), left=left)
        assert ours.is_compiled == pays


def test_compiled_code_that_is_slower_is_not_used(world, small):
    world.compiled_s = 0.2
    ours = Engine(small, find_taps(small), batch=4)
    for _ in range(20):
        ours.rows(images_of(small, 4), left=10**9)
    assert not ours.is_compiled
    assert world.compilations == 1
    assert ours.gain == pytest.approx(0.5)


def test_compiled_code_that_is_slower_is_used_where_it_was_asked_for(world, small):
    world.compiled_s = 0.2
    ours = Engine(small, find_taps(small), compiling="on", batch=4)
    for _ in range(4):
        ours.rows(images_of(small, 4))
    assert ours.is_compiled


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices_are_left_in_eager_mode(world, small, device):
    ours = Engine(small, find_taps(small), batch=4)
    for _ in range(4):
        ours.rows(images_of(small, 4))
    ours.device = device
    assert not ours._should_compile(4, 10**9)


def views_of(backbone):
    return Views(eval_transform(backbone.data_config))


def test_the_gain_is_remembered(world, small, tmp_path, folder):
    world.compile_s = 0.5
    pictures, taps, store = pictures_of(folder), find_taps(small), FeatureStore(tmp_path / "store")
    options = Compute(precision="32", batch_size=4)
    first = FrozenBackbone(small)
    store_path = store.root / "measured"
    assert not store_path.exists()
    memory = first.memory(taps, options, store)
    memory.remember(gain=1.5, compile_s=0.2)  # so that 45 pictures pay for it
    extract_pictures(pictures, first, taps, views_of(small), store, options)
    assert world.compilations == 1
    assert memory.recall()["gain"] == pytest.approx(2.0)
    assert memory.recall()["compile_s"] == pytest.approx(0.5)
    second = FrozenBackbone(small)
    ours = second.engine(taps, "32", options, second.memory(taps, options, store))
    assert (ours.gain, ours.compile_s) == pytest.approx((2.0, 0.5))
    other = FrozenBackbone(own(small_net(width=6)))
    ours = other.engine(taps, "32", options, other.memory(taps, options, store))
    assert (ours.gain, ours.compile_s) == (GAIN, COMPILE_S)


def test_few_pictures_are_never_compiled_for(small, tmp_path, folder, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **options: pytest.fail("compiled for 45 pictures"))
    options = Compute(precision="32", batch_size=4)
    extract_pictures(
        pictures_of(folder), FrozenBackbone(small), find_taps(small), views_of(small), FeatureStore(tmp_path), options
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": 1, "gain": 9}', "\udcff"])
def test_a_damaged_memory_is_no_memory(small, tmp_path, text):
    frozen, taps, options = FrozenBackbone(small), find_taps(small), Compute()
    memory = frozen.memory(taps, options, FeatureStore(tmp_path))
    memory.remember(gain=3.0)
    assert memory.recall()["gain"] == 3.0
    memory.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert memory.recall() == {}
    memory.remember(gain=2.0)
    assert memory.recall()["gain"] == 2.0


def test_facts_are_remembered_side_by_side(small, tmp_path):
    memory = FrozenBackbone(small).memory(find_taps(small), Compute(), FeatureStore(tmp_path))
    memory.remember(gain=2.0)
    memory.remember(precision="32", reason="x")
    assert {"gain": 2.0, "precision": "32", "reason": "x"}.items() <= memory.recall().items()
    assert json.loads(memory.path.read_text()) == memory.recall()


# --- precision


@pytest.mark.parametrize(
    ("wanted", "device", "cpu", "gpu", "expected"),
    [
        ("32", "cpu", True, True, "32"),
        ("bf16", "cpu", False, False, "bf16"),
        ("bf16", "mps", False, False, "bf16"),
        ("auto", "cpu", False, True, "32"),
        ("auto", "cpu", True, False, None),
        ("auto", "cuda", True, False, "32"),
        ("auto", "cuda", False, True, None),
        ("auto", "mps", True, True, "32"),
    ],
)
def test_precision_that_needs_no_measurement(monkeypatch, wanted, device, cpu, gpu, expected):
    monkeypatch.setattr(engine, "cpu_has_bf16", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu or including_emulation)
    settled = settled_precision(wanted, device)
    assert (settled and settled.precision) == expected
    if settled is not None:
        assert settled.cosine is None
        assert settled.reason


class Rough(nn.Module):
    """A network that bf16 ruins: what tells pictures apart is far below the rounding of a large constant."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        with torch.no_grad():
            self.conv.bias.fill_(1000.0)

    def forward(self, x):
        return (self.conv(x) - 1000.0).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("model", "faster", "expected"),
    [
        (small_net, SPEED_UP * 1.01, "bf16"),
        (small_net, SPEED_UP * 0.99, "32"),
        (small_net, 0.5, "32"),
        (Rough, 4.0, "32"),
    ],
)
def test_bf16_only_where_it_is_faster_and_exact_enough(monkeypatch, model, faster, expected):
    torch.manual_seed(0)
    trial = own(model())
    monkeypatch.setattr(engine, "_seconds", lambda which, images: {"32": faster, "bf16": 1.0}[which.precision])
    images = images_of(trial, 8)
    choice = choose_feature_precision(trial, find_taps(trial), images, device="cpu")
    assert choice.precision == expected
    with torch.no_grad():
        exact = Engine(trial, find_taps(trial), compiling="off").rows(images)[0]
        half = Engine(trial, find_taps(trial), precision="bf16", compiling="off").rows(images)[0]
    assert choice.cosine == pytest.approx(float(functional.cosine_similarity(half, exact, dim=1).min()), abs=1e-5)
    assert (choice.cosine < COSINE) == (model is Rough)
    assert f"bf16 is {faster:.2f} times as fast" in choice.reason


def test_one_bad_depth_is_enough(monkeypatch):
    """The smallest cosine counts, of all layers and all pictures."""
    monkeypatch.setattr(engine, "_seconds", lambda which, images: {"32": 4.0, "bf16": 1.0}[which.precision])
    torch.manual_seed(0)
    trial = own(nn.Sequential(small_net(), nn.Conv2d(8, 8, 1)))
    images = images_of(trial, 8)
    taps = find_taps(trial, "all")
    assert choose_feature_precision(trial, taps, images, device="cpu").precision == "bf16"
    with torch.no_grad():
        trial.model[0][3].bias.fill_(1000.0)  # stage 1 loses nothing in direction ...
        trial.model[1].bias.copy_(-trial.model[1].weight.sum(dim=(1, 2, 3)) * 1000.0)  # ... stage 2 all
    choice = choose_feature_precision(trial, taps, images, device="cpu")
    assert choice.precision == "32"
    assert choice.cosine < COSINE


@pytest.fixture
def measured(monkeypatch):
    """A processor that has bf16; returns the pictures of each measurement."""
    calls = []

    def measure(backbone, taps, images, *, device):
        calls.append(len(images))
        return choose_feature_precision(backbone, taps, images, device=device)

    monkeypatch.setattr(engine, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(engine, "_seconds", lambda which, images: {"32": 4.0, "bf16": 1.0}[which.precision])
    monkeypatch.setattr(compute, "choose_feature_precision", measure)
    return calls


def extract(backbone, pictures, root, **options):
    options = {"compiling": "off", "batch_size": 8, **options}
    return extract_pictures(
        pictures, FrozenBackbone(backbone), find_taps(backbone), views_of(backbone), FeatureStore(root),
        Compute(**options),
    )  # fmt: skip


def test_the_choice_is_remembered(measured, folder, tmp_path):
    backbone, pictures = build(), pictures_of(folder)
    first = extract(backbone, pictures, tmp_path)
    assert first.precision.precision == "bf16"
    assert measured == [32]
    second = extract(backbone, pictures, tmp_path)
    assert measured == [32]
    assert second.computed == 0
    assert second.precision.precision == "bf16"
    assert second.precision.cosine == pytest.approx(first.precision.cosine)
    assert "measured before" in second.precision.reason
    for tap, rows in first.rows.items():
        assert np.array_equal(second.rows[tap], rows)
    extract(build(seed=1), pictures, tmp_path)  # other weights
    assert measured == [32, 32]
    assert extract(backbone, pictures, tmp_path, precision="32").computed == len(pictures)
    assert measured == [32, 32]


def test_the_choice_does_not_depend_on_the_number_of_threads(measured, folder, tmp_path, monkeypatch):
    """Another --workers leaves another number of compute threads; the features must stay the ones that are kept."""
    backbone, pictures = build(), pictures_of(folder)[:8]
    torch.set_num_threads(1)
    assert extract(backbone, pictures, tmp_path).precision.precision == "bf16"
    torch.set_num_threads(2)
    monkeypatch.setattr(engine, "_seconds", lambda which, images: 1.0)  # bf16 is no faster with this many
    assert extract(backbone, pictures, tmp_path).computed == 0


def test_no_readable_picture_to_try(measured, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    bad = [Picture(hashlib.sha256(b"no picture").hexdigest(), str(tmp_path / "bad.png"))]
    result = extract(build(), bad, tmp_path / "store")
    assert measured == []
    assert result.precision.precision == "32"
    assert list(result.failures) == [0]


def test_bf16_features_are_close_and_as_good(folder, tmp_path):
    backbone = build("transferkit/mini", size=48)
    pictures = pictures_of(folder)
    full, half = (extract(backbone, pictures, tmp_path, precision=p) for p in ("32", "bf16"))
    (exact,), (rough,) = (tuple(each.rows.values()) for each in (full, half))
    exact, rough = exact[0], rough[0]
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough), "the rows are equal: bf16 was not used"
    cosine = (exact * rough).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > COSINE
    labels = np.array([picture.name.rsplit("/", 2)[1] for picture in pictures])
    train = np.array(["/train/" in picture.name for picture in pictures])
    scores = []
    for rows in (exact, rough):
        scaler = StandardScaler().fit(rows[train])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(rows[train]), labels[train])
        scores.append(model.score(scaler.transform(rows[~train]), labels[~train]))
    count = (~train).sum()
    assert abs(scores[0] - scores[1]) <= 1.96 * np.sqrt(scores[0] * (1 - scores[0]) / count + 1 / count**2)
    assert scores[0] > 0.5
