"""Answers that cannot be used, in `evaluate`: all are named at once, and left out where that is asked for."""

import json

import numpy as np
import pytest
from box_runs import BOX_CLASSES, make_box_run
from data_sets import draw
from mask_runs import MASK_CLASSES, make_mask_run, picture
from object_sets import voc_xml
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.options.fields import make_config
from transferkit.options.results import EvaluateConfig
from transferkit.results.evaluate.evaluate import evaluate


def measured(run, data, out, **more):
    options = {"run": str(run), "data": str(data), "out": str(out), "accelerator": "cpu", "workers": 0,
               "report": "off", **more}  # fmt: skip
    evaluate(make_config(EvaluateConfig, options))
    return [json.loads((out / name).read_text(encoding="utf-8")) for name in ("metrics.json", "data.json")]


def masks(root):
    """Six pictures: two good, one alone, and three masks of which nothing can be used; and a mask alone."""
    (root / "masks").mkdir(parents=True)
    for stem in ("good", "fine", "alone", "text", "size", "value"):
        picture(root / "images" / f"{stem}.png", (50, 40), seed=len(stem))
        if stem != "alone":
            mask = np.arange(40 * 50).reshape(40, 50) // 700
            Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{stem}.png")
    (root / "masks" / "text.png").write_bytes(b"no picture")
    Image.fromarray(np.ones((10, 50), dtype=np.uint8)).save(root / "masks" / "size.png")
    Image.fromarray(np.full((40, 50), 9, dtype=np.uint8)).save(root / "masks" / "value.png")
    Image.fromarray(np.ones((40, 50), dtype=np.uint8)).save(root / "masks" / "stray.png")
    (root / "classes.txt").write_text("\n".join(MASK_CLASSES), encoding="utf-8")
    return root


def test_masks_that_cannot_be_used(tmp_path, capsys):  # fault 198
    run, root = make_mask_run(tmp_path / "run", facts={"values": [0, 1, 2]}), masks(tmp_path / "data")
    with pytest.raises(DataError, match=r"alone\.png.*stray\.png.*--skip-bad"):
        measured(run, root, tmp_path / "no")
    (root / "masks" / "stray.png").unlink()
    (root / "images" / "alone.png").unlink()
    with pytest.raises(DataError, match=r"3 pictures whose answers cannot be used: .*--skip-bad") as refused:
        measured(run, root, tmp_path / "no")
    reasons = {"size": "it has 50 x 10 pixels", "text": "not a picture", "value": "it holds 9"}
    for stem, reason in reasons.items():
        assert f"{stem}.png" in str(refused.value) and reason in str(refused.value)
    assert not (tmp_path / "no" / "metrics.json").exists()
    picture(root / "images" / "alone.png")
    metrics, data = measured(run, root, tmp_path / "out", skip_bad=True)
    assert metrics["all"]["n"] == 2 and metrics["left_out"]["unreadable"] == 0
    said = capsys.readouterr().out
    assert "1 pictures without a mask" in said and "3 pictures whose answers cannot be used" in said
    assert {row["path"].split("/")[-1] for row in data["skipped"]} >= {"alone.png", "size.png", "text.png", "value.png"}


def test_objects_that_cannot_be_used(tmp_path, capsys):  # fault 198
    run, root = make_box_run(tmp_path / "run"), tmp_path / "data"
    for stem, rows in {
        "good": [(BOX_CLASSES[0], 2, 2, 20, 20)],
        "flat": [(BOX_CLASSES[0], 9, 9, 9, 9), (BOX_CLASSES[1], 1, 1, 15, 9)],
        "other": [("whale", 3, 3, 12, 12)],
    }.items():
        draw(root / "JPEGImages" / f"{stem}.png", len(stem) + len(rows), size=(40, 30))
        voc_xml(root, stem, (30, 40), rows)
    with pytest.raises(DataError, match=r"boxes without area.*flat\.png"):
        measured(run, root, tmp_path / "no")
    voc_xml(root, "flat", (30, 40), [(BOX_CLASSES[1], 1, 1, 15, 9)])
    with pytest.raises(DataError, match=r"1 pictures whose answers cannot be used: .*other\.png.*'whale'"):
        measured(run, root, tmp_path / "no")
    voc_xml(root, "flat", (30, 40), [(BOX_CLASSES[0], 9, 9, 9, 9), (BOX_CLASSES[1], 1, 1, 15, 9)])
    metrics, _ = measured(run, root, tmp_path / "out", skip_bad=True)
    assert metrics["all"]["n"] == 2 and metrics["all"]["objects"] == 2
    said = capsys.readouterr().out
    assert "1 boxes without area are left out" in said and "'whale'" in said
