"""`explain` of boxes: a page without a heat map, which is said once; the surest box in the table."""

import csv

import pytest
from box_runs import BOX_CLASSES, make_box_run
from mask_runs import picture
from PIL import Image

from transferkit.core.errors import TransferkitWarning
from transferkit.options.results import ExplainConfig
from transferkit.results.explain.explain import explain
from transferkit.results.predict.predictor import load


@pytest.mark.parametrize("outlines", [False, True])
@pytest.mark.parametrize("target", [None, BOX_CLASSES[1]])
def test_a_page_says_what_is_found_and_that_there_is_no_heat_map(tmp_path, outlines, target):  # fault 171
    run = make_box_run(tmp_path / "run", outlines=outlines)
    photo = picture(tmp_path / "p" / "a.png", (90, 60), seed=1)
    Image.new("RGB", (20, 20), (0, 0, 255)).save(tmp_path / "p" / "nothing.png")
    config = ExplainConfig(run=str(run), paths=[str(tmp_path / "p")], out=str(tmp_path / "out"), neighbours=0,
                           target=target, accelerator="cpu", workers=0, quiet=True)  # fmt: skip
    with pytest.warns(
        TransferkitWarning, match="takes maps of several sizes, and no one of them holds its evidence"
    ) as told:
        explain(config)
    assert len(told) == 1
    with (tmp_path / "out" / "explain.csv").open(encoding="utf-8", newline="") as stream:
        found, nothing = csv.DictReader(stream)
    (record,) = load(run).predict([photo], workers=0)
    first = record.boxes[0]
    assert found["label"] == first.label and float(found["left"]) == pytest.approx(first.left, abs=0.006)
    assert found["target"] == (target or first.label) and (tmp_path / "out" / found["png"]).stat().st_size > 10_000
    assert nothing["label"] == "" and nothing["target"] == (target or BOX_CLASSES[0]) and nothing["error"] == ""
    assert ("mask" in found) == outlines
    if outlines:
        with Image.open(tmp_path / "out" / found["mask"]) as image:
            assert image.size == (90, 60)
