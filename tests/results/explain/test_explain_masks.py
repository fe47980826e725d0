"""Heat maps of masks: of the linear head what its logits say by themselves, of other heads a sentence."""

import numpy as np
import pytest
import torch
from mask_runs import MASK_CLASSES, make_mask_run, picture
from PIL import Image
from torch.nn import functional

from transferkit.core.csv import read_csv
from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.data.augment.normalise import normalise
from transferkit.data.images.resize import fit
from transferkit.data.images.windows import windows
from transferkit.options.results import ExplainConfig
from transferkit.results.explain.explain import explain
from transferkit.results.explain.gradcam import heat_of_windows, heatmaps
from transferkit.results.predict.predictor import load


@pytest.fixture
def photo(tmp_path):
    return picture(tmp_path / "a.png", (60, 44), seed=3)


def test_the_evidence_of_a_linear_head_is_its_logit_without_the_bias(tmp_path, photo):
    """The mean logit is the mean over places of weights times features, so Grad-CAM's weights are the head's own."""
    predictor = load(make_mask_run(tmp_path / "run"))
    module, view = predictor.module, predictor.decode(photo)[None]
    with torch.no_grad():
        maps = module.backbone.forward_last_map(normalise(torch.from_numpy(view), predictor.info.preprocessing))
        (weight,) = (one for one in module.head.parameters() if one.ndim > 1)
        for at, name in enumerate(MASK_CLASSES):
            logits = torch.einsum("c,bchw->bhw", weight.reshape(len(MASK_CLASSES), -1)[at], maps).relu()[:, None]
            expected = functional.interpolate(logits, view.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
            expected = (expected / expected.max()).numpy()
            assert np.allclose(heatmaps(predictor, view, [name]), expected, atol=2e-3)


def test_a_head_on_several_maps_has_none_and_a_page_all_the_same(tmp_path, photo):  # fault 171
    pytest.importorskip("segmentation_models_pytorch", reason="the decoders are not installed")
    run = make_mask_run(tmp_path / "run", head="unet")
    predictor = load(run)
    with pytest.raises(ConfigError, match="takes maps of several sizes, and no one of them holds its evidence"):
        heatmaps(predictor, predictor.decode(photo)[None], [MASK_CLASSES[1]])
    with pytest.warns(TransferkitWarning, match="pages without heat maps"):
        explain(ExplainConfig(run=str(run), paths=[photo], out=str(tmp_path / "why"), neighbours=0, workers=0,
                              accelerator="cpu", quiet=True))  # fmt: skip
    (row,) = read_csv(tmp_path / "why" / "explain.csv")
    assert row["target"] in MASK_CLASSES[1:] and (tmp_path / "why" / row["png"]).stat().st_size > 10_000
    assert sum(float(row[name]) for name in MASK_CLASSES) == pytest.approx(1, abs=1e-5)
    mask = np.asarray(Image.open(tmp_path / "why" / row["mask"]))  # beside its page
    assert np.array_equal(mask, predictor.predict([photo], workers=0)[0].mask)


def test_the_map_of_windows_has_one_scale_and_of_each_window_its_core(tmp_path):
    predictor = load(make_mask_run(tmp_path / "run", side=32, crop_mode="tile"))
    config = predictor.info.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    heats = {name: heat_of_windows(predictor, pixels, name) for name in MASK_CLASSES}
    name, heat = max(heats.items(), key=lambda pair: float(pair[1].mean()))
    assert heat.shape == (50, 41) and heat.max() == 1 and heat.min() >= 0
    plain = np.zeros((50, 41), dtype=np.float32)
    for number, window in enumerate(windows((50, 41), config)):
        shown = fit(pixels, config, part=number)[None]
        (own,) = heatmaps(predictor, shown, [name], scaled=False)
        (scaled,) = heatmaps(predictor, shown, [name])
        assert np.allclose(own, scaled * own.max(), atol=1e-6)
        plain[window.core.slices] = own[window.frame.slices]
    assert np.allclose(heat, plain / plain.max(), atol=1e-5)
