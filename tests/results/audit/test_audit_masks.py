"""`check` on pictures and masks, and on pictures with objects."""

import json
import shutil
import zlib

import numpy as np
import pytest
from data_sets import draw
from object_sets import coco, scene, voc, voc_xml
from PIL import Image

from transferkit.core.errors import ConfigError, DataError
from transferkit.data.index.boxes import BoxReader
from transferkit.data.index.index import index_images
from transferkit.data.index.masks import MaskReader
from transferkit.data.scan.records import ScannedFile
from transferkit.options.data import DataOptions
from transferkit.options.features import CheckConfig
from transferkit.results.audit.audit import check
from transferkit.results.audit.copies import copy_issues

READERS = {"auto": MaskReader(), "instances": BoxReader()}


def masks_of(root, value=255, count=3):
    """A set of masks in two splits; every class has pixels in both."""
    for split in ("train", "val"):
        for number in range(count + 3):
            draw(root / split / "images" / f"{number}.png", zlib.crc32(f"{split}{number}".encode()))
            mask = np.zeros((16, 20), dtype=np.uint8)
            mask[:, : 5 + number] = value
            (root / split / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def test_masks_are_audited(tmp_path, capsys):
    root = masks_of(tmp_path / "set")
    check(CheckConfig(data=str(root), out=str(tmp_path / "out"), quick=True, quiet=True))
    said = capsys.readouterr().out
    assert "lie side by side in train/): masks hold 0 for 'background' and 255 for 'foreground'" in " ".join(
        said.split()
    )
    found = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert not [issue for issue in found["findings"] if issue["refused"]]
    (root / "train" / "masks" / "0.png").write_bytes(b"")
    (root / "val" / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match="1 pictures without a mask"):
        check(CheckConfig(data=str(root), out=str(tmp_path / "bad"), quick=True, quiet=True))
    with pytest.raises(ConfigError, match="--fix writes a manifest of labels, .* masks .*--skip-bad"):
        check(CheckConfig(data=str(root), fix=str(tmp_path / "f.csv"), quick=True, quiet=True))


def audited(root, out, **options):
    """What `check` writes, and what it refuses."""
    refused = ""
    try:
        check(CheckConfig(data=str(root), out=str(out), quick=True, quiet=True, **options))
    except DataError as error:
        refused = str(error)
    return json.loads((out / "check.json").read_text(encoding="utf-8")), refused


@pytest.mark.parametrize("values", ["auto", "instances"])
def test_check_refuses_what_finetune_refuses_and_counts_the_rest(tmp_path, capsys, values):  # fault 196
    root = masks_of(tmp_path / "set")
    bad = root / "train" / "masks" / "0.png"
    bad.write_bytes(b"no picture")
    options = {} if values == "auto" else {"mask_values": values}
    with pytest.raises(DataError, match=r"0\.png.*not a picture of a known format"):
        index_images(DataOptions(data=str(root), **options), reader=READERS[values])
    report, refused = audited(root, tmp_path / "strict", **options)
    assert "masks cannot be used" in refused and "not a picture of a known format" in refused
    assert report["splits"] == {"train": 5, "val": 6}
    about = [issue for issue in report["findings"] if issue["kind"] == "mask"]
    assert [issue["refused"] for issue in about] == [True]  # not told again as left out
    report, refused = audited(root, tmp_path / "lenient", skip_bad=True, **options)
    assert not refused and report["splits"] == {"train": 5, "val": 6}
    (issue,) = [issue for issue in report["findings"] if issue["kind"] == "mask"]
    assert not issue["refused"] and "not a picture of a known format" in issue["message"]
    assert not [issue for issue in report["findings"] if issue["kind"] == "wrong-name"]  # it is called as it is
    assert bad.read_bytes() == b"no picture"


def test_the_share_of_each_class_in_the_pixels_is_told(tmp_path, capsys):
    report, _ = audited(masks_of(tmp_path / "set", count=0), tmp_path / "out")  # 5, 6 and 7 of 20 columns
    (issue,) = [issue for issue in report["findings"] if issue["title"] == "Pixels of each class"]
    assert issue["message"] == "pixels of the training masks: background 70.00%, foreground 30.00%"
    assert [(case["label"], case["pixels"]) for case in issue["cases"]] == [("background", 672), ("foreground", 288)]
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert "Every class has 3 train pictures." in page
    totals = page[page.index("<tfoot>") : page.index("</tfoot>")]
    assert totals.count('<td class="num">3</td>') == 2, totals  # pictures, not the sum over classes


def test_equal_pictures_with_equal_masks_are_copies_and_no_leak(tmp_path):
    root = masks_of(tmp_path / "set")
    for folder in ("images", "masks"):
        shutil.copy(root / "train" / folder / "0.png", root / "train" / folder / "again.png")
    check(CheckConfig(data=str(root), out=str(tmp_path / "out"), quick=True, quiet=True))
    kinds = [
        issue["kind"] for issue in json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))["findings"]
    ]
    assert "copy" in kinds and "leak" not in kinds


def test_objects_are_told_in_words_and_counted_beside_what_is_refused(tmp_path, capsys):  # fault 196
    scenes = {f"{number}": scene(number) for number in range(4)}
    root = voc(tmp_path / "set", scenes, split={"0": "train", "1": "train", "2": "val", "3": "val"})
    rows = [("cat", 1, 1, 9, 9), ("cat", 20, 20, 29, 29), ("dog", 30, 1, 40, 9), ("dog", 50, 50, 50, 50)]
    voc_xml(root, "0", scenes["0"].pixels.shape[:2], rows)
    report, refused = audited(root, tmp_path / "out")
    assert "1 boxes without area" in refused and report["splits"] == {"train": 2, "val": 2}
    assert [issue["refused"] for issue in report["findings"] if issue["kind"] == "box"] == [True]
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert "<strong>2 cat, 1 dog</strong>" in page and "{&#34;objects" not in page and '{"objects' not in page
    assert ">objects</th></tr></thead>" in page and '<th scope="row">pictures</th><td class="num">2</td>' in page
    with pytest.raises(ConfigError, match="these answers are objects - leave it out; --skip-bad"):
        check(CheckConfig(data=str(root), fix=str(tmp_path / "f.csv"), quick=True, quiet=True))


def test_advice_on_near_copies_is_what_can_be_done():
    files = {name: ScannedFile(name, "", split) for name, split in (("a", "train"), ("b", "val"))}
    (labels,) = copy_issues((), [("a", "b")], files)
    (objects,) = copy_issues((), [("a", "b")], files, fixable=False)
    assert "--fix does" in labels.message and "--fix" not in objects.message


def test_a_class_that_is_listed_and_never_shown_is_refused_where_finetune_refuses_it(tmp_path, capsys):  # fault 199
    root = coco(tmp_path / "set", {str(number): scene(number) for number in range(8)})
    values = json.loads((root / "train.json").read_text(encoding="utf-8"))
    values["categories"].insert(0, {"id": 1, "name": "root"})  # as tools write above all others
    (root / "train.json").write_text(json.dumps(values), encoding="utf-8")
    index = index_images(DataOptions(data=str(root)), reader=BoxReader())
    report, refused = audited(root, tmp_path / "out")
    assert refused == "" and report["classes"] == list(index.class_names) == ["cat", "dog", "elk"]
    report, refused = audited(root, tmp_path / "kept", allow_empty_classes=True)
    assert refused == "" and "root" in report["classes"]
