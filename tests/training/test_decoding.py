"""How pictures are decoded goes from the options to the data, with the model, and to every verb that uses it."""

import base64
import io
import json

import lightning as L
import numpy as np
import pillow_heif
import pytest
import yaml
from data_sets import memory_only
from PIL import Image

import transferkit as tk
from transferkit.cli.main import main
from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.records import USUAL, Decoding
from transferkit.data.index.index import index_images
from transferkit.models.artifact import load_model, read_info
from transferkit.models.initial import load_weights_from
from transferkit.options.data import DataOptions
from transferkit.results.explain.pictures import enlarged, thumbnail
from transferkit.runs.files import RunFiles

QUIET = {
    "backbone": "transferkit/mini", "weights": "bundled", "image_size": 32, "precision": "32", "accelerator": "cpu",
    "workers": 0, "quiet": True,
}  # fmt: skip
ASKED = Decoding(ground="#000000", grey_bits=10, max_pixels=5000)


def shape_of(name, at):
    """A round or square mark, ``(64, 64)`` of 0 and 1."""
    y, x = np.mgrid[0:64, 0:64] - np.array([20 + at % 5 * 5, 20 + at // 5 * 5]).reshape(2, 1, 1)
    inside = x**2 + y**2 < 14**2 if name == "circle" else np.maximum(abs(x), abs(y)) < 12
    return inside.astype(np.uint16)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """White drawings in the alpha channel, and grey ones of 10 bits in 16."""
    folder = tmp_path_factory.mktemp("drawn")
    noise = np.random.default_rng(0)
    for name in ("circle", "square"):
        (folder / name).mkdir()
        for at in range(20):
            mark = shape_of(name, at)
            if at % 2:
                image = Image.new("RGB", (64, 64), "white")
                image.putalpha(Image.fromarray((mark * 255).astype(np.uint8)))
            else:
                image = Image.fromarray((mark * 900 + noise.integers(0, 120, (64, 64))).astype(np.uint16))
            image.save(folder / name / f"{at:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """A run by `finetune`, with all three options."""
    out = tmp_path_factory.mktemp("runs") / "run"
    tk.finetune(
        data=str(drawn), out=str(out), ground="black", grey_bits=10, max_pixels=5000, phases="probe", probe_views=0,
        report="off", calibrate="none", store=str(out.parent / "store"), **QUIET,
    )  # fmt: skip
    return out


def test_it_travels_with_the_model(run, drawn):
    assert read_info(run).preprocessing.decoding == ASKED
    preprocessing = json.loads((run / "model.json").read_text(encoding="utf-8"))["preprocessing"]
    assert preprocessing["decoding"] == {"ground": "#000000", "grey_bits": 10, "max_pixels": 5000}
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["ground"], config["grey_bits"], config["max_pixels"]) == ("black", 10, 5000)
    assert RunFiles(run).metrics["test"]["acc"] == 1.0 == RunFiles(run).metrics["val"]["acc"]
    notes = " ".join(json.loads((run / "data.json").read_text(encoding="utf-8"))["notes"])
    assert "laid over black" in notes and "of one colour" not in notes and "levels" not in notes
    model = tk.load(run)
    for path in (drawn / "circle/01.png", drawn / "circle/02.png"):
        view = model.decode(str(path))
        assert view.max() > 200 and view.min() < 40, "what is drawn is seen"


def test_the_usual_way_loses_what_is_drawn_and_says_so(drawn):
    pixels = memory_only(64, 1 << 20)
    index = index_images(DataOptions(data=str(drawn)), min_side=64, pixels=pixels)
    notes = " ".join(index.notes)
    assert "20 of 40 pictures: of one colour" in notes and "20 have transparency, and may show something by" in notes
    assert "20 of 40 pictures: 16-bit greyscale, none of whose values is above 1,019" in notes
    assert sum(pixels.get(sha256).min() == 255 for sha256 in {record.sha256 for record in index.records}) == 20


def test_every_verb_decodes_as_training_did(run, drawn, tmp_path, capsys):
    """Pixels and calls differ where one does not."""
    words = ["evaluate", str(run), str(drawn), "--out", str(tmp_path / "e"), "--report", "off", "--unseen-only"]
    assert main([*words, "--quiet"]) == 0
    assert json.loads((tmp_path / "e/metrics.json").read_text(encoding="utf-8"))["all"]["acc"] == 1.0
    paths = [str(drawn / f"{name}/{at:02d}.png") for name in ("circle", "square") for at in range(4)]
    assert main(["predict", str(run), *paths, "--out", str(tmp_path / "p.csv"), "--quiet"]) == 0
    rows = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["circle"] * 4 + ["square"] * 4
    opened = [Image.open(path) for path in paths]
    assert [item.label for item in tk.load(run).predict(opened)] == ["circle"] * 4 + ["square"] * 4
    words = ["explain", str(run), *paths[:2], "--out", str(tmp_path / "x"), "--store", str(tmp_path / "s"), "--quiet"]
    assert main(words) == 0
    prepared = read_info(run).preprocessing
    for path in paths:
        assert enlarged(path, prepared, 96).min() < 40
        shown = thumbnail(path, prepared.decoding)
        with Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))) as image:
            assert np.asarray(image).min() < 40 and np.asarray(image).max() > 200
    capsys.readouterr()


def test_the_limit_is_raised_where_the_model_is_used(run, tmp_path, capsys):  # fault 103
    Image.new("RGB", (100, 60)).save(tmp_path / "large.png")
    words = ["predict", str(run), str(tmp_path / "large.png"), "--quiet"]
    assert main(words) == 8
    assert "100 x 60 pixels, more than the limit of 5,000 pixels, which --max-pixels raises" in capsys.readouterr().out
    assert main([*words, "--max-pixels", "6000"]) == 0
    assert read_info(run).preprocessing.decoding.max_pixels == 5000, "the model stays as it is"


def test_weights_of_a_run_bring_it_along(run, drawn, tmp_path):
    for options, expected in (
        ({}, ASKED), ({"ground": "#808080", "max_pixels": 9000}, Decoding("#808080", 10, 9000)),
    ):  # fmt: skip
        table = tk.extract_features(
            str(drawn), store=str(tmp_path), **{**QUIET, "weights": str(run / "model.safetensors"), **options}
        )
        assert table.facts["data_config"]["decoding"]["ground"] == expected.ground
        assert table.facts["data_config"]["decoding"]["max_pixels"] == expected.max_pixels


def test_a_start_from_a_run_of_other_decoding_is_said(run):  # fault 141
    module, _ = load_model(run)
    load_weights_from(run, module)
    usual = tk.TransferModule("transferkit/mini", 2, image_size=32, class_names=("circle", "square"))
    said = (
        r"decoded with --ground #000000 --grey-bits 10, and these with --ground #ffffff --grey-bits 16 - pass the same"
    )
    with pytest.warns(TransferkitWarning, match=said):
        load_weights_from(run, usual)


def test_features_of_one_way_are_none_of_another_and_a_limit_is_no_way(drawn, tmp_path):  # fault 142
    def computed(**options):
        return tk.extract_features(str(drawn), store=str(tmp_path), **QUIET, **options).facts["computed"]

    assert computed() == 40 == computed(ground="black") == computed(grey_bits=10)
    assert computed() == computed(max_pixels=50_000) == computed(ground="#FFFFFF") == computed(grey_bits=16) == 0
    fresh = tmp_path / "fresh"
    refused = {"store": str(fresh), "max_pixels": 4000, "skip_bad": True, **QUIET}
    with pytest.raises(DataError, match="more than the limit of 4,000 pixels"):
        tk.extract_features(str(drawn), **{**refused, "skip_bad": False})
    assert len(tk.extract_features(str(drawn), store=str(fresh), **QUIET)) == 40, "the refusal is not kept"


def test_estimators_take_it(drawn):
    paths = [str(drawn / f"{name}/{at:02d}.png") for name in ("circle", "square") for at in range(1, 20, 2)]
    options = {"weights": "bundled", "image_size": 32, "cache": str(drawn.parent / "cache"), "precision": "32"}
    rows = tk.FeatureExtractor(ground="black", **options).transform(paths)
    opened = [Image.open(path) for path in paths]
    np.testing.assert_allclose(tk.FeatureExtractor(ground="black", **options).transform(opened), rows, atol=1e-5)
    blank = tk.FeatureExtractor(**options).transform(paths)
    assert np.ptp(blank, axis=0).max() < 1e-5 < np.ptp(rows, axis=0).max()
    probe = tk.ImageProbe(ground="black", **options).fit(paths, ["circle"] * 10 + ["square"] * 10)
    assert probe.score(paths, ["circle"] * 10 + ["square"] * 10) == 1.0
    with pytest.raises(ConfigError, match="--ground is 'blak', expected white, black or #rrggbb"):
        tk.FeatureExtractor(ground="blak", **options).fit(paths)


def fit(module, data):
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **silent).fit(module, data)


def test_a_plain_trainer_hands_it_on_both_ways(run, drawn):
    data = tk.ImageData(drawn, image_size=32, ground="black", grey_bits=10, keep_bytes=0)
    module = tk.TransferModule("transferkit/mini", data.num_classes, weights="bundled")
    fit(module, data)
    assert module.data_config.decoding == Decoding("#000000", 10), "what the data say, the model keeps"
    data = tk.ImageData(drawn, image_size=32)
    white = {record.sha256: data.pixels.get(record.sha256).copy() for record in data.index.records}
    module, _ = load_model(run)
    fit(module.train(), data)
    assert data.data_config.decoding == ASKED == module.data_config.decoding, "what the model says, the data keep"
    picture = next(record for record in data.index.records if record.path.endswith("circle/01.png"))
    at = [record.path for record in data.index.split(picture.split)].index(picture.path)
    view = data.dataset(picture.split)[at].images[0].numpy()
    assert white[picture.sha256].min() == 255 and view.min() < 40, "nothing that was decoded before is shown"


def test_heic_and_avif_are_trained_on_and_predicted(tmp_path, capsys):
    for name in ("circle", "square"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for at in range(12):
            image = Image.fromarray((shape_of(name, at) * 200 + 20).astype(np.uint8)).convert("RGB")
            path = tmp_path / "d" / name / str(at)
            if at % 2:
                image.save(path.with_suffix(".avif"))
            else:
                pillow_heif.from_pillow(image).save(path.with_suffix(".HEIC"))
    run = tmp_path / "r"
    tk.finetune(
        data=str(tmp_path / "d"), out=str(run), phases="probe", probe_views=0, report="off",
        calibrate="none", store=str(tmp_path / "store"), val_split=0.25, **QUIET,
    )  # fmt: skip
    assert json.loads((run / "data.json").read_text(encoding="utf-8"))["skipped"] == []
    assert main(["predict", str(run), str(tmp_path / "d"), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 24 and sum(f"{line.split(',')[1]}/" in line for line in lines) >= 20


@pytest.mark.filterwarnings("default")
def test_endings_that_are_not_read_are_counted(run, drawn, tmp_path, without_heif, capsys):  # fault 109
    for name in ("a.heic", "b.HEIC", "c.mov"):
        (tmp_path / name).write_bytes(b"x")
    assert main(["predict", str(run), str(tmp_path)]) == 3
    said = "(3 files with endings .heic (2), .mov (1) are not read; pip install 'transferkit[heif]' to read .heic)"
    error = capsys.readouterr().err
    assert said in error and ".jpg, .jpeg" in error and ".hif" not in error
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    assert main(["predict", str(run), str(tmp_path), "--quiet"]) == 0
    assert f"warning: {said[1:-1]}" in capsys.readouterr().err
    assert main(["predict", str(run), str(tmp_path / "*.[hm]*")]) == 3
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "d.png"), "--quiet"]) == 0
    assert "are not read" not in capsys.readouterr().err


def test_the_usual_decoding_is_the_first_releases():
    assert Decoding("#ffffff", 16, 100_000_000) == USUAL
