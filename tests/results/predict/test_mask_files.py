"""A file of each mask: at the picture's own size, under a name of its own, all of them or none."""

import csv
import io
import json

import numpy as np
import parallel_worker as worker
import pytest
from live_server import make_run
from mask_runs import MASK_CLASSES, make_mask_run, picture
from PIL import Image

import transferkit as tk
from transferkit.core.errors import ConfigError, ExportError, StorageError, TransferkitWarning
from transferkit.data.images.decode import decode_image
from transferkit.models.task import task_named
from transferkit.options.results import PredictConfig
from transferkit.results.predict.colours import palette_of
from transferkit.results.predict.files import FileNames
from transferkit.results.predict.masks import MaskFiles
from transferkit.results.predict.predict import predict_files
from transferkit.results.predict.predictor import load

PALETTE = [[1, 2, 3], [200, 0, 0], [1, 2, 3]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_mask_run(tmp_path_factory.mktemp("masks") / "run", palette=PALETTE)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(folder / "a.png", (50, 41))
    picture(folder / "b" / "a.jpg", (31, 97), seed=1, exif=turned)  # upright: 97 wide
    picture(folder / "wide.bmp", (301, 7), seed=2)
    return folder


def predict(run, *paths, **options):
    words = {name: str(value) if name in ("out", "masks") else value for name, value in options.items()}
    predict_files(PredictConfig(**{
        "run": str(run), "paths": list(map(str, paths)), "workers": 0, "accelerator": "cpu", "quiet": True, **words,
    }))  # fmt: skip


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_picture_has_a_file_of_its_own_size(run, pictures, tmp_path):
    predict(run, pictures, out=tmp_path / "out.csv")
    table, folder = rows(tmp_path / "out.csv"), tmp_path / "out-masks"
    assert files(folder) == ["a.png", "b/a.png", "wide.png"]
    predicted = load(run).predict([row["path"] for row in table], workers=0)
    seen = set()
    for row, record in zip(table, predicted, strict=True):
        with Image.open(row["mask"]) as image:
            assert image.mode == "P" and not image.has_transparency_data
            mask = np.asarray(image)
            colours = np.asarray(image.convert("RGB"))
        assert mask.shape == decode_image(row["path"]).shape[:2]
        assert np.array_equal(mask, record.mask)
        assert np.array_equal(colours, palette_of(load(run).info.target_spec)[mask])
        seen |= set(np.unique(mask).tolist())
        for at, name in enumerate(MASK_CLASSES):
            assert float(row[name]) == pytest.approx((mask == at).mean(), abs=1e-6)
    assert seen == {0, 1, 2}  # though two of them have one colour


def test_masks_of_json_lines_and_of_standard_output(run, pictures, tmp_path, capsys):
    predict(run, pictures / "b", pictures / "a.png", masks=tmp_path / "m", format="jsonl")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["mask"] for line in lines] == [str(tmp_path / "m" / "a.png"), str(tmp_path / "m" / "a-2.png")]
    predict(run, pictures)
    printed = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["mask"] for row in printed] == ["", "", ""]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "pictures"]


def test_the_folder_serves_as_the_masks_of_a_data_set(run, pictures, tmp_path):
    data = tmp_path / "data"
    for number in range(4):
        picture(data / "images" / "x" / f"{number}.jpg", (60 + number, 50), seed=number)
    predict(run, data / "images", masks=data / "masks")
    (data / "classes.txt").write_text("\n".join(("ground", "leaf", "stem")) + "\n", encoding="utf-8")
    read = tk.ImageData(str(data), image_size=64, reader=task_named("segmentation").targets)
    with pytest.warns(TransferkitWarning, match="classes of few training pixels|without a pixel in val"):
        assert read.class_names == ("ground", "leaf", "stem")
    labels = sorted(map(str, (data / "masks").rglob("*.png")))
    annotations = read.index.targets.annotate(labels, sorted(map(str, (data / "images").rglob("*.jpg"))))
    for at, label in enumerate(labels):
        assert np.array_equal(annotations.read(at).mask, np.asarray(Image.open(label)))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b/a.jpg", "a.png"], ["a.png", "b/a.png", "a-2.png"]),
        (["a.jpg", "a.png", "a-2.jpg", "a.bmp"], ["a.png", "a-2.png", "a-2-2.png", "a-3.png"]),
        (["A.jpg", "a.jpg", "\u00e4.jpg", "a\u0308.jpg"], ["A.png", "a-2.png", "\u00e4.png", "a\u0308-2.png"]),
        (["c.jpg", "c.png/x.jpg", "c.png/y.jpg"], ["c.png", "c.png-2/x.png", "c.png-2/y.png"]),
        (["c.png/x.jpg", "c.jpg"], ["c.png/x.png", "c-2.png"]),
        (["page.v1.tif", ".hidden", "none"], ["page.v1.png", ".hidden.png", "none.png"]),
        (["\u00e4" * 126 + ".jp"], ["\u00e4" * 110 + ".png"]),
    ],
)
def test_names_are_unlike_each_other_on_every_file_system(paths, names):  # fault 170
    made = FileNames(".png")
    assert [made.of(path) for path in paths] == names


def test_what_a_wildcard_names_is_below_the_last_plain_folder(run, pictures, tmp_path):
    predict(run, pictures / "*" / "*.jpg", pictures / "?.png", masks=tmp_path / "m", out=tmp_path / "o.csv")
    assert files(tmp_path / "m") == ["a.png", "b/a.png"]


def test_earlier_masks_are_replaced_as_a_whole_and_nothing_else_ever_is(run, pictures, tmp_path):  # fault 169
    out, folder = tmp_path / "out.csv", tmp_path / "m"
    predict(run, pictures, out=out, masks=folder)
    with pytest.raises(ConfigError, match=r"m: is not empty - replace it by --overwrite"):
        predict(run, pictures / "a.png", masks=folder)
    predict(run, pictures / "a.png", masks=folder, out=out, overwrite=True)
    assert files(folder) == ["a.png"]
    truth = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
    truth.putpalette([0, 0, 0, 128, 0, 0])
    truth.save(folder / "by hand.png")
    with pytest.raises(ConfigError, match="holds by hand.png, which predict did not write"):
        predict(run, pictures / "a.png", masks=folder, out=out, overwrite=True)
    assert files(folder) == ["a.png", "by hand.png"]


def test_after_a_failure_the_earlier_masks_are_there_and_no_others(run, pictures, tmp_path, monkeypatch):  # fault 169
    out, folder = tmp_path / "out.csv", tmp_path / "out-masks"
    predict(run, pictures / "a.png", out=out)
    before, names = out.read_bytes(), files(folder)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"none")
    with pytest.raises(ExportError, match="cannot read picture"):
        predict(run, pictures, broken, out=out, overwrite=True, strict=True)

    def full(self, record, spec):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MaskFiles, "content", full)
    with pytest.raises(StorageError, match="No space left"):
        predict(run, pictures, out=out, overwrite=True)
    assert (out.read_bytes(), files(folder)) == (before, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg", "out-masks", "out.csv", "pictures"]


def test_an_unreadable_picture_has_a_row_and_no_file(run, pictures, tmp_path):
    (pictures / "broken.jpg").write_bytes(b"none")
    with pytest.raises(ExportError, match="1 of 4 pictures could not be read"):
        predict(run, pictures, out=tmp_path / "out.csv")
    (broken,) = (row for row in rows(tmp_path / "out.csv") if row["error"])
    assert broken["mask"] == "" and broken["leaf"] == ""
    assert len(files(tmp_path / "out-masks")) == 3


def test_folders_that_cannot_be_are_refused_before_any_work(run, pictures, tmp_path):  # fault 169
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "m").mkdir()
    for options, told in (
        ({"masks": tmp_path / "file"}, "is a file, expected a folder"),
        ({"masks": tmp_path / "gone" / "m"}, "does not exist - make it"),
        ({"masks": pictures / "m"}, "where the next time its masks would be taken for pictures"),
        ({"out": pictures / "out.csv"}, "where the next time its masks would be taken for pictures"),
        ({"masks": tmp_path / "m", "out": tmp_path / "m" / "o.csv"}, "is where --out .* lies"),
        ({"masks": "/proc", "overwrite": True}, "is a disk of its own"),
    ):
        with pytest.raises(ConfigError, match=told):
            predict(run, pictures, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m", "pictures"]


def test_a_model_without_masks_has_no_folder_for_them(pictures, tmp_path):  # fault 154
    classifier = make_run(tmp_path / "classes")
    with pytest.raises(ConfigError, match="--masks is a folder for masks, and this model of classification gives none"):
        predict(classifier, pictures, masks=tmp_path / "m")


@pytest.mark.slow
def test_two_processes_write_the_same_files(run, pictures, tmp_path):  # fault 81
    predict(run, pictures, pictures / "b" / "a.jpg", out=tmp_path / "one.csv", masks=tmp_path / "one")
    listed = [*(row["path"] for row in rows(tmp_path / "one.csv"))]
    words = ["predict", str(run), str(pictures), "-", "--accelerator", "cpu", "--quiet"]
    words += ["--out", str(tmp_path / "two.csv"), "--masks", str(tmp_path / "two")]
    ended = worker.Ranks(2, tmp_path, worker.predict_in_rounds, words, listed[-1:], 1).results()
    assert [result[1][0] for result in ended] == [0, 0]
    assert files(tmp_path / "two") == files(tmp_path / "one") == ["a-2.png", "a.png", "b/a.png", "wide.png"]
    for name in files(tmp_path / "one"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    told = (tmp_path / "two.csv").read_text(encoding="utf-8")
    assert told == (tmp_path / "one.csv").read_text(encoding="utf-8").replace("/one/", "/two/")
