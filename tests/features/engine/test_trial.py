"""bf16 for features: chosen where it is faster and exact enough, the same for all verbs, and as good for a probe."""

import engine_worker
import numpy as np
import pytest
import torch
from engine_worker import build, only, own, pictures_of, small_net
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.network import FeatureNetwork
from transferkit.features.engine.taps import find_taps
from transferkit.features.engine.trial import PICTURES, draw_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.machine import precision as policy
from transferkit.machine import timings
from transferkit.machine.precision import COSINE

pytestmark = [pytest.mark.precision, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the batches that networks are run on."""
    forward, sizes = FeatureNetwork.forward, []

    def counting(network, images):
        sizes.append(len(images))
        return forward(network, images)

    monkeypatch.setattr(FeatureNetwork, "forward", counting)
    return sizes


def extract(backbone, pictures, root, precision="auto"):
    return engine_worker.extract(pictures, backbone, FeatureStore(root), precision=precision)


class Rough(nn.Module):
    """A network that bf16 ruins: what tells pictures apart is far below the rounding of a large constant."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        with torch.no_grad():
            self.conv.bias.fill_(1000.0)

    def forward(self, x):
        return (self.conv(x) - 1000.0).mean(dim=(2, 3))


class Broken(nn.Module):
    """A network whose features are no numbers in bf16."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)

    def forward(self, x):
        maps = self.conv(x)
        return maps.mean(dim=(2, 3)) * (torch.nan if maps.dtype == torch.bfloat16 else 1.0)


@pytest.mark.parametrize(("model", "expected"), [(small_net, "bf16"), (Rough, "32"), (Broken, "32")])
def test_every_row_must_point_where_that_of_fp32_does(fast_bf16, model, expected):
    torch.manual_seed(0)
    backbone = own(model())
    taps = find_taps(backbone)
    choice = FrozenBackbone(backbone).choose_precision(taps, Compute())
    assert choice.precision == expected
    assert (choice.cosine >= COSINE) == (expected == "bf16")
    pictures = draw_pictures(backbone.data_config.shown_shape)
    with torch.no_grad():
        exact = Engine(backbone, taps, compiling="off").rows(pictures)[0]
        half = Engine(backbone, taps, precision="bf16", compiling="off").rows(pictures)[0]
    smallest = float(functional.cosine_similarity(half, exact, dim=1).min())
    assert choice.cosine == pytest.approx(-1.0 if model is Broken else smallest, abs=1e-5)


def test_one_bad_depth_is_enough(fast_bf16):
    """The smallest cosine counts, of all layers and all pictures."""
    torch.manual_seed(0)
    backbone = own(nn.Sequential(small_net(), nn.Conv2d(8, 8, 1)))
    taps = find_taps(backbone, "all")
    assert FrozenBackbone(backbone).choose_precision(taps, Compute()).precision == "bf16"
    with torch.no_grad():
        backbone.model[0][3].bias.fill_(1000.0)  # stage 1 loses nothing in direction ...
        backbone.model[1].bias.copy_(-backbone.model[1].weight.sum(dim=(1, 2, 3)) * 1000.0)  # ... stage 2 all
    choice = FrozenBackbone(backbone).choose_precision(taps, Compute())
    assert choice.precision == "32"
    assert choice.cosine < COSINE


def test_the_trial_is_made_once_for_all_stores_and_data(fast_bf16, passes, folder, tmp_path, monkeypatch):
    backbone, pictures = build(), pictures_of(folder)
    assert extract(backbone, pictures[:4], tmp_path / "a").precision.precision == "bf16"
    assert passes.count(PICTURES) == 4  # each way once for its time and once for its rows
    monkeypatch.setattr(timings, "_SESSION", {})  # as in the next process
    passes.clear()
    first = extract(backbone, pictures, tmp_path / "b")
    assert passes.count(PICTURES) == 0
    second = extract(backbone, pictures, tmp_path / "b")
    assert (first.computed, second.computed) == (len(pictures), 0)
    assert second.precision == first.precision
    for tap, rows in first.rows.items():
        assert np.array_equal(second.rows[tap], rows)
    extract(build(seed=1), pictures, tmp_path / "b")  # other weights are as fast, but must be as exact
    assert passes.count(PICTURES) == 2
    assert extract(backbone, pictures, tmp_path / "b", precision="32").computed == len(pictures)
    assert passes.count(PICTURES) == 2


def test_the_choice_does_not_depend_on_the_number_of_threads(fast_bf16, one_thread, folder, tmp_path, monkeypatch):
    """Another --workers leaves another number of compute threads; the features must stay the ones that are kept."""
    backbone, pictures = build(), pictures_of(folder)[:8]
    torch.set_num_threads(1)
    assert extract(backbone, pictures, tmp_path).precision.precision == "bf16"
    torch.set_num_threads(2)
    monkeypatch.setattr(policy, "compare", lambda full, half: 1.0)  # bf16 is no faster with this many
    assert extract(backbone, pictures, tmp_path).computed == 0


def test_bf16_features_are_close_and_as_good(folder, tmp_path):
    backbone = build("transferkit/mini", size=48)
    pictures = pictures_of(folder)
    full, half = (extract(backbone, pictures, tmp_path, precision=p) for p in ("32", "bf16"))
    exact, rough = only(full)[0], only(half)[0]
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


def test_drawn_pictures_are_bright_and_dark_and_full_of_contrast_and_faint():
    pictures = draw_pictures((48, 64, 3))
    assert (pictures.shape, pictures.dtype) == ((PICTURES, 48, 64, 3), torch.uint8)
    assert torch.equal(pictures, draw_pictures((48, 64, 3)))
    level, contrast = pictures.float().mean(dim=(1, 2, 3)), pictures.float().std(dim=(1, 2, 3))
    assert level.min() < 60
    assert level.max() > 200
    assert 1 < contrast.min() < 12
    assert contrast.max() > 50
