"""Predictions: those of training, one row per picture in order, lazily, whatever is among the pictures."""

import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import parallel_worker as worker
import pytest
import torch
from PIL import Image
from torch import nn

import transferkit.results.predict.predict as verb
from transferkit.core.csv import read_csv
from transferkit.core.errors import BackboneError, ConfigError, DataError, ExportError
from transferkit.core.records import DataConfig
from transferkit.core.targets import TargetSpec
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.transform import eval_transform
from transferkit.data.batches import dataset
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.images.decode import decode_image, decode_with_info
from transferkit.data.images.resize import resize
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.whole import Output, WholeNetwork
from transferkit.machine.cores import available_cores
from transferkit.models.artifact import ModelInfo, load_model
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.calibration.conformal import HeldOut
from transferkit.models.heads.neighbour import NeighbourHead
from transferkit.models.module import TransferModule
from transferkit.models.parts import Request
from transferkit.options.fields import make_config
from transferkit.options.results import PredictConfig
from transferkit.results.predict.lines import csv_header, csv_rows, json_row
from transferkit.results.predict.predictor import Predictor, load
from transferkit.results.predict.record import ClassOutput, Prediction
from transferkit.results.predict.views import PredictionViews
from transferkit.runs.measure import predictions_of
from transferkit.training.finetune import finetune

CLASSES = ["circle", "square", "stripes"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run directory, three epochs of a head."""
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(data=str(folder), backbone="test_resnet", weights="random", image_size=32, phases="probe", probe="sgd",
             epochs=3, batch_size=8, accelerator="cpu", workers=0, quiet=True, out=str(out))  # fmt: skip
    return out


@pytest.fixture(scope="module")
def load_once():
    """`load`, for runs that do not change: an engine takes longer to make than these pictures to predict."""
    return functools.lru_cache(load)


@pytest.fixture
def predictor(run, load_once):
    """The model of the run, for tests that leave it as it is."""
    return load_once(str(run))


@pytest.fixture
def own(run):
    """A model of the run that may be changed."""
    return load(run)


@pytest.fixture
def paths(folder):
    return sorted(str(path) for path in (folder / "val").rglob("*.png"))


@pytest.fixture
def predict(run, capsys, load_once, monkeypatch):
    """The verb, over its options; returns what it printed."""
    monkeypatch.setattr(verb, "load", load_once)

    def call(*files, stdin=None, **options):
        config = make_config(PredictConfig, {"run": str(run), "paths": list(map(str, files)), "quiet": True,
                                             "accelerator": "cpu", "workers": 0, **options})  # fmt: skip
        try:
            verb.predict_files(config, stdin)
        finally:
            call.out = capsys.readouterr().out
        return call.out

    return call


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def calibrated(predictor, **fields):
    """The predictor with another calibration."""
    predictor.info = dataclasses.replace(predictor.info, calibration=Calibration(**fields))
    return predictor


def build(head, *, weights="random", **options):
    """A predictor of an untrained model."""
    torch.manual_seed(0)
    module = TransferModule("test_resnet", 3, head, weights=weights, image_size=32, class_names=CLASSES)
    for name, buffer in module.backbone.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 2.0)  # so that folding has something to do
    info = ModelInfo("test_resnet", None, tuple(CLASSES), module.data_config, "random")
    return Predictor(module, info, **options)


# ---- agreement --------------------------------------------------------------------------------------------------


def test_labels_are_those_of_training_on_every_validation_picture(run, folder, predictor):  # fault 84
    module, info = load_model(run)
    data = ImageData(folder, data_config=info.preprocessing)
    probs, targets = predictions_of(module, data.val_dataloader())
    val = [record.path for record in data.index.split("val")]
    found = predictor.predict(val)
    assert [item.path for item in found] == val
    assert [item.label for item in found] == [CLASSES[at] for at in probs.argmax(dim=1)]
    right = np.mean([item.label == CLASSES[target] for item, target in zip(found, targets, strict=True)])
    assert np.float32(right) == np.float32(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]["acc"])
    expected = info.calibration.probs(probs.log())  # log-probabilities are logits
    np.testing.assert_allclose([item.probs for item in found], expected, atol=1e-5)
    for item in found:
        assert item.probability == max(item.probs) == item.top[0][1] and len(item.top) == 3
        assert sum(item.probs) == pytest.approx(1.0, abs=1e-6)


def test_every_kind_of_source_gives_the_same_in_order(predictor, paths, tmp_path):
    plain = [output.logits for output in predictor.outputs(paths[:4])]
    sources = [Path(paths[0]), Path(paths[1]).read_bytes(), Image.open(paths[2]), np.asarray(Image.open(paths[3]))]
    found = list(predictor.outputs(sources))
    assert [output.name for output in found] == [paths[0], "images[1]", "images[2]", "images[3]"]
    np.testing.assert_allclose([output.logits for output in found], plain, atol=1e-5)
    assert found[1].sha256 == next(predictor.outputs([paths[1]])).sha256 != found[0].sha256
    grey = np.arange(40 * 40, dtype=np.uint8).reshape(40, 40)
    pair = list(predictor.outputs([grey, np.stack([grey] * 3, axis=2)]))
    np.testing.assert_array_equal(pair[0].logits, pair[1].logits)
    assert [len(predictor.predict(one)) for one in (paths[0], sources[1], sources[2], grey)] == [1, 1, 1, 1]
    assert [item.path for item in predictor.predict(np.array(paths[:2]))] == paths[:2]


def test_a_turned_picture_is_turned_back_from_a_file_and_from_pillow(predictor, paths, tmp_path):
    upright = Image.open(paths[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    sources = [paths[0], tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]
    plain, file, pillow = (output.logits for output in predictor.outputs(sources))
    np.testing.assert_array_equal(file, plain)
    np.testing.assert_array_equal(pillow, plain)


def test_decode_shows_what_the_network_is_given(predictor, paths):
    view = predictor.decode(paths[0])
    assert view.shape == (32, 32, 3) and view.dtype == np.uint8
    logits = predictor.logits(np.stack([view, predictor.decode(paths[1])]))
    np.testing.assert_allclose(logits, [output.logits[0] for output in predictor.outputs(paths[:2])], atol=1e-5)
    assert predictor.logits(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 3)
    with pytest.raises(DataError, match="cannot read picture 'gone.jpg': No such file"):
        predictor.decode("gone.jpg")


# ---- heads ------------------------------------------------------------------------------------------------------


class MapHead(nn.Module):
    takes_maps = True

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 3, 1), nn.BatchNorm2d(3)

    def forward(self, maps):
        return self.norm(self.conv(maps)).amax(dim=(2, 3))


def neighbours(width):
    head = NeighbourHead(width, 3, rows=30, k=5, temperature=0.07)
    head.rows.copy_(nn.functional.normalize(torch.randn(30, width), dim=1))
    head.labels.copy_(torch.arange(30) % 3)
    return head


@pytest.mark.parametrize("kind", ["linear", "mlp", "cosine", "maps", "knn"])
def test_any_head_gives_what_the_module_gives(kind, paths):
    plain = build("linear").module.backbone
    made = {"maps": lambda: MapHead(plain.map_channels), "knn": lambda: neighbours(plain.num_features)}
    predictor = build(made.get(kind, lambda: kind)())
    images = torch.from_numpy(np.stack([predictor.decode(path) for path in paths]))
    with torch.no_grad():
        expected = predictor.module(normalise(images, predictor.info.preprocessing))
    found = np.concatenate([output.logits for output in predictor.outputs(paths, batch_size=5)])
    assert not torch.allclose(expected[0], expected[1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_bf16_computes_the_backbone_in_bf16_and_the_head_in_fp32(paths):
    predictor = build("linear", precision="bf16")
    seen = []
    predictor.module.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half = np.concatenate([output.logits for output in predictor.outputs(paths)])
    full = np.concatenate([output.logits for output in build("linear").outputs(paths)])
    assert set(seen) == {torch.float32}
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_logits_that_are_no_numbers_are_an_error_of_that_picture(own, paths):
    with torch.no_grad():
        own.module.head.linear.bias[1] = float("nan")
    output = next(own.outputs(paths[:1]))
    assert (output.logits, output.error) == (None, "the model returns NaN or infinity for it")


# ---- pictures that cannot be read -------------------------------------------------------------------------------


def test_bad_pictures_have_their_reason_and_the_others_are_complete(predictor, paths, tmp_path):  # fault 83
    truncated, closed = tmp_path / "cut.png", Image.open(paths[0])
    truncated.write_bytes(Path(paths[0]).read_bytes()[:200])
    closed.close()
    odd = [str(tmp_path / "gone.png"), b"", str(tmp_path), truncated, closed, "nul\0l"]
    mixed = [*itertools.chain(*zip(odd, paths, strict=False)), paths[7]]
    found = predictor.predict(mixed, batch_size=3)
    plain = {item.path: item for item in predictor.predict(paths)}
    assert [item.error is None for item in found] == [False, True] * 6 + [True]
    for item in found:
        if item.error is None:
            np.testing.assert_allclose(item.probs, plain[item.path].probs, atol=1e-6)
        else:
            assert (item.label, item.probability, item.top, item.probs) == (None, None, (), ())
    assert [item.error for item in found[:5:2]] == ["No such file or directory", "the file is empty",
                                                    "not a regular file"]  # fmt: skip
    assert all(item.error for item in predictor.predict(odd)) and predictor.predict([]) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "images[0] is int, expected a path"),
        (None, "images[0] is NoneType"),
        (np.zeros((4, 4, 3)), "images[0] is an array (4, 4, 3) of float64"),
        (np.zeros((4, 4, 4), np.uint8), "images[0] is an array (4, 4, 4) of uint8"),
        (np.zeros((0, 4, 3), np.uint8), "images[0] is an array (0, 4, 3)"),
        (bytearray(b"x"), "images[0] is bytearray"),
    ],
)
def test_what_is_no_source_is_refused(predictor, source, message):
    with pytest.raises(ConfigError) as caught:
        predictor.predict([source])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta": "10crop"}, "tta is '10crop', expected none, flip, 5crop or a number"),
        ({"tta": 0}, "tta is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"abstain": 1.0}, "abstain is 1.0"),
        ({"abstain": 0.9, "abstain_by": "luck"}, "abstain_by is 'luck'"),
        ({"abstain_by": "sets"}, "abstain_by 'sets' says how abstain decides - pass abstain"),  # fault 154
    ],
)
def test_options_are_checked_before_anything_is_read(predictor, options, message):
    with pytest.raises(ConfigError) as caught:
        predictor.stream(iter(()), **options)
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="the pictures are one str"):
        predictor.outputs("a.png")


# ---- any number of pictures -------------------------------------------------------------------------------------


def endless(path, taken):
    for number in itertools.count():
        taken.append(number)
        yield path


def test_pictures_are_taken_as_they_are_needed(predictor, paths):
    taken = []
    stream = predictor.stream(endless(paths[0], taken), batch_size=4)
    assert taken == []
    for number, _ in zip(range(30), stream, strict=False):
        assert len(taken) <= number + 4
    stream.close()
    assert len(taken) == 32


@pytest.mark.skipif(available_cores() < 2, reason="a decoding process beside the compute thread needs two cores")
def test_decoding_processes_give_the_same_and_stay_near(predictor, paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    mixed = [*paths[:5], tmp_path / "bad.png", Image.open(paths[6]), paths[7]]
    alone = predictor.predict(mixed, batch_size=3, tta=2)
    threads = torch.get_num_threads()
    found = predictor.predict(mixed, batch_size=3, tta=2, workers=1)
    assert [(item.path, item.label, item.error) for item in found] == [(i.path, i.label, i.error) for i in alone]
    np.testing.assert_allclose([i.probs for i in found if i.probs], [i.probs for i in alone if i.probs], atol=1e-6)
    assert torch.get_num_threads() == threads
    taken = []
    stream = predictor.stream(endless(paths[0], taken), batch_size=4, workers=1)
    for number, _ in zip(range(24), stream, strict=False):
        assert len(taken) <= number + 4 * 4
    stream.close()
    with pytest.raises(ConfigError, match=r"images\[6\] is float"):
        predictor.predict([*paths[:6], 0.5], batch_size=3, workers=1)


def test_the_engine_is_told_how_much_is_left(predictor, paths, monkeypatch):
    told = []
    rows = Engine.rows

    def watch(self, images, *, left=0):
        told.append((len(images), left))
        return rows(self, images, left=left)

    monkeypatch.setattr(Engine, "rows", watch)
    predictor.predict(paths, batch_size=5)
    assert told == [(5, 7), (5, 2), (2, 0)]
    told.clear()
    predictor.predict(iter(paths), batch_size=5)  # as many are taken to come as have come
    assert told == [(5, 5), (5, 10), (2, 12)]
    told.clear()
    predictor.predict(paths[:2], batch_size=3, tta="5crop")  # views of one picture are more than a batch
    assert told == [(3, 5), (2, 5), (3, 0), (2, 0)]


# ---- test-time views --------------------------------------------------------------------------------------------


def test_views_are_rendered_from_one_decoded_picture(predictor, paths, monkeypatch):
    calls = []
    monkeypatch.setattr(dataset, "decode_with_info", lambda *a, **k: calls.append(1) or decode_with_info(*a, **k))
    for tta, count in (("none", 1), ("flip", 2), ("5crop", 5), (3, 4), ("3", 4)):
        calls.clear()
        outputs = list(predictor.outputs(paths, tta=tta))
        assert len(calls) == len(paths)
        assert {output.logits.shape for output in outputs} == {(count, 3)}


def test_flip_is_the_view_and_its_mirror_image(predictor, paths):
    plain, mirrored = predictor.decode(paths[0]), predictor.decode(paths[0])[:, ::-1]
    found = next(predictor.outputs(paths[:1], tta="flip"))
    np.testing.assert_allclose(found.logits, predictor.logits(np.stack([plain, mirrored])), atol=1e-5)


@pytest.mark.parametrize(("crop_pct", "mode", "box"), [(0.75, "center", (48, 48)), (1.0, "center", (56, 56)),
                                                       (1.0, "squash", (56, 84))])  # fmt: skip
def test_five_crops_by_hand(crop_pct, mode, box):
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    config = DataConfig(image_size=(32, 32), crop_pct=crop_pct, crop_mode=mode)
    found = PredictionViews.make(config, "5crop").render(picture, "", range(5))
    rows, columns = box
    expected = [picture[:rows, :columns], picture[:rows, -columns:], picture[-rows:, :columns],
                picture[-rows:, -columns:]]  # fmt: skip
    np.testing.assert_array_equal(found[0], eval_transform(config)(picture))
    for view, crop in zip(found[1:], expected, strict=True):
        np.testing.assert_array_equal(view, resize(crop, (32, 32), 1))  # cv2.INTER_LINEAR; all sides shrink
    tiny = PredictionViews.make(config, "5crop").render(picture[:1, :1], "", range(5))
    assert {view.shape for view in tiny} == {(32, 32, 3)}


def test_augmented_views_follow_content_and_seed_alone(predictor, paths):
    first = [output.logits for output in predictor.outputs(paths[:3], tta=4)]
    turned = [output.logits for output in predictor.outputs(paths[2::-1], tta=4, batch_size=7)]
    np.testing.assert_allclose(first, turned[::-1], atol=1e-5)
    other = next(predictor.outputs(paths[:1], tta=4, seed=1)).logits
    np.testing.assert_allclose(other[0], first[0][0], atol=1e-5)
    assert not np.allclose(other[1:], first[0][1:], atol=1e-4)
    assert len({row.tobytes() for row in first[0]}) == 5
    views, pixels = PredictionViews.make(predictor.info.preprocessing, 1), decode_image(paths[0])
    one, again, another = (views.render(pixels, known_by, [1])[0] for known_by in ("a", "a", "b"))
    assert np.array_equal(one, again) and not np.array_equal(one, another)


def test_probabilities_are_averaged_after_calibration(own):
    logits = np.array([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=np.float32)
    calibrated(own, method="temperature", temperature=2.0)
    soft = [np.exp(row / 2) / np.exp(row / 2).sum() for row in logits]
    np.testing.assert_allclose(own.probs(logits), np.mean(soft, axis=0), rtol=1e-6)
    before = np.exp(logits.mean(axis=0) / 2) / np.exp(logits.mean(axis=0) / 2).sum()
    assert not np.allclose(own.probs(logits), before, atol=0.01)


# ---- abstaining -------------------------------------------------------------------------------------------------


class Rules:
    """A calibration whose thresholds are known."""

    held_out = HeldOut((0,), (0,), (1.0,), (1.0,), 3)

    def __init__(self, sets=0.0, classes=()):
        self.sets, self.classes = sets, classes

    def probs(self, logits):
        return logits.softmax(dim=-1)

    def set_threshold(self, coverage):
        assert coverage == 0.9
        return self.sets

    def class_thresholds(self, precision):
        assert precision == 0.9
        return self.classes


def abstaining(predictor, probs, rules, **options):
    """Predictions for pictures whose probabilities are given."""
    predictor.info = dataclasses.replace(predictor.info, calibration=rules)
    outputs = [Output("x", row[None]) for row in torch.tensor(probs).log().numpy()]
    predictor.outputs = lambda *args, **given: iter(outputs)
    return predictor.predict([], abstain=0.9, **options)


def test_a_label_is_given_where_the_prediction_set_holds_one_class(own):
    probs = [[0.7, 0.2, 0.1], [0.2, 0.45, 0.35], [0.3, 0.33, 0.37], [0.34, 0.33, 0.33]]
    sure, two, none, tie = abstaining(own, probs, Rules(sets=0.35))[:4]
    assert (sure.label, sure.abstained, sure.classes) == ("circle", False, ("circle",))
    assert (two.label, two.abstained, two.classes) == (None, True, ("square", "stripes"))
    assert (none.label, none.classes) == ("stripes", ("stripes",))
    assert (tie.label, tie.abstained, tie.classes) == (None, True, ())
    assert two.probability == pytest.approx(0.45) and two.top[0][0] == "square"


def test_a_label_is_given_where_its_class_has_been_right_often_enough(own):
    probs = [[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]
    found = abstaining(own, probs, Rules(classes=(0.65, None, 0.3)), abstain_by="thresholds")
    assert [item.label for item in found] == ["circle", None, "stripes", None]
    assert [item.abstained for item in found] == [False, True, False, True]
    assert {item.classes for item in found} == {()}


def test_without_held_out_pictures_nothing_can_be_abstained_by(own, paths):
    with pytest.raises(ConfigError, match="run `transferkit calibrate RUN DATA`"):
        calibrated(own).predict(paths, abstain=0.9)


# ---- the verb ---------------------------------------------------------------------------------------------------


def test_csv_and_json_lines(predict, predictor, paths, tmp_path):  # fault 83
    bad = tmp_path / 'bad, "name".jpg'
    bad.write_bytes(b"no picture")
    expected = predictor.predict([paths[0], bad, paths[1]])
    with pytest.raises(ExportError, match="1 of 3 pictures could not be read; their rows say why"):
        predict(paths[0], bad, paths[1])
    assert predict.out.splitlines()[0] == (
        "path,label,probability,label_2,probability_2,label_3,probability_3,unlike_training,error"
    )
    rows = rows_of(predict.out)
    assert [row["path"] for row in rows] == [paths[0], str(bad), paths[1]]
    for row, item in zip(rows, expected, strict=True):
        if item.error is None:
            cells = [row["label"], row["probability"], row["label_2"], row["probability_2"]]
            assert cells == [item.label, f"{item.probability:.6f}", item.top[1][0], f"{item.top[1][1]:.6f}"]
            assert row["error"] == ""
        else:
            assert row["error"] == item.error and row["label"] == row["probability_3"] == ""
    assert list(rows_of(predict(paths[0], top_k=9))[0]) == list(rows[0])  # there are three classes
    with pytest.raises(ExportError):
        predict(paths[0], bad, format="jsonl", top_k=1)
    good, failed = map(json.loads, predict.out.splitlines())
    assert list(good) == ["path", "label", "probability", "top", "abstained", "set", "unlike_training", "error"]
    share = round(expected[0].probability, 6)
    assert good == {"path": paths[0], "label": expected[0].label, "probability": share,
                    "top": [[expected[0].label, share]], "abstained": False, "set": [],
                    "unlike_training": round(expected[0].unlike_training, 4), "error": None}  # fmt: skip
    assert (failed["label"], failed["top"], failed["error"]) == (None, [], expected[1].error)


def test_prediction_sets_have_a_column(run, predict, paths, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    values = json.loads((copy / "model.json").read_text(encoding="utf-8"))
    held = HeldOut((0,) * 40, (0,) * 40, (0.2,) * 40, (0.9,) * 40, 3)
    values["calibration"] = Calibration(method="temperature", temperature=4.0, held_out=held).to_dict()
    (copy / "model.json").write_text(json.dumps(values), encoding="utf-8")
    rows = rows_of(predict(*paths, run=str(copy), abstain=0.9, top_k=1))
    assert list(rows[0]) == ["path", "label", "probability", "set", "unlike_training", "error"]
    for row in rows:
        assert (row["label"] == "") == ("|" in row["set"] or not row["set"])
    assert any("|" in row["set"] for row in rows)
    lines = [json.loads(line) for line in predict(*paths, run=str(copy), abstain=0.9, format="jsonl").splitlines()]
    assert ["|".join(line["set"]) for line in lines] == [row["set"] for row in rows]
    assert [line["abstained"] for line in lines] == [line["label"] is None for line in lines]
    assert "set" not in rows_of(predict(paths[0], run=str(copy), abstain=0.9, abstain_by="thresholds"))[0]


def test_nothing_in_a_row_is_a_formula_and_everything_reads_back(tmp_path):  # fault 92, fault 28
    names = ["=cmd|' /C calc'!A0", "@x", "-1.jpg", "\tb", 'a\nb"c,d.jpg', "'quoted", "plain"]
    found = [Prediction(name, label, 0.5, ((label, 0.5),)) for name, label in zip(names, reversed(names), strict=True)]
    part, spec, request = ClassOutput(), TargetSpec(tuple(names)), Request(top_k=1)
    text = csv_header(part, spec, request) + "".join(csv_rows(part, item, spec, request) for item in found)
    (tmp_path / "p.csv").write_text(text, newline="", encoding="utf-8")
    assert [row["path"] for row in read_csv(tmp_path / "p.csv")] == names
    assert [row["label"] for row in read_csv(tmp_path / "p.csv")] == names[::-1]
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    odd = Prediction(os.fsdecode(b"/a/\xff.jpg"), error="r\udcfe")
    assert csv_rows(part, odd, spec, request) == "/a/\\xff.jpg,,,r\\xfe\n"
    assert json.loads(json_row(part, odd))["path"] == "/a/\\xff.jpg"
    assert json_row(part, odd).isascii()


def test_a_terminal_gets_no_control_characters_and_no_character_it_cannot_show():  # fault 92
    line = 'a\x1b]0;t\x07"\x9b.jpg,é\n'
    assert verb._shown(line, "utf-8", terminal=True) == 'a\\x1b]0;t\\x07"\\x9b.jpg,é\n'
    assert verb._shown(line, "utf-8", terminal=False) == line
    assert verb._shown("é\n", "ascii", terminal=False) == "\\xe9\n"


def test_a_file_appears_when_all_is_done(predict, paths, tmp_path, capsys):  # fault 83
    out = tmp_path / "p.jsonl"
    out.write_text("before", encoding="utf-8")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    with pytest.raises(ConfigError, match="exists already - replace it by --overwrite"):
        predict(paths[0], out=str(out))
    with pytest.raises(ExportError, match="cannot read picture .*bad.png': the file is empty - replace or remove it"):
        predict(paths[0], bad, paths[1], out=str(out), strict=True, overwrite=True)
    assert out.read_text(encoding="utf-8") == "before" and sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.png",
        "p.jsonl",
    ]
    with pytest.raises(ExportError, match="1 of 3"):
        predict(paths[0], bad, paths[1], out=str(out), quiet=False, overwrite=True)
    assert predict.out == f"predicted  3 pictures, 1 unreadable, in {out}\n"
    lines = out.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["path"] for line in lines] == [paths[0], str(bad), paths[1]]


def test_strict_stops_at_the_first(predict, paths, tmp_path):
    with pytest.raises(ExportError, match="leave out --strict"):
        predict("-", stdin=io.StringIO("\n".join([paths[0], "gone.png", paths[1]])), strict=True)
    assert [row["path"] for row in rows_of(predict.out)] == [paths[0]]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("p.cvs", "unknown ending '.cvs'. Did you mean '.csv'"),
        ("p", "unknown ending ''"),
        (".", "is a folder"),
        ("none/p.csv", "the folder .*none does not exist"),
    ],
)
def test_where_to_write_is_checked_first(predict, tmp_path, out, message):
    with pytest.raises(ConfigError, match=message):
        predict("-", run="no run", out=str(tmp_path / out), format="csv" if out == "." else "auto")


def test_missing_paths_stop_it_before_anything_is_predicted(predict, paths, tmp_path):  # fault 83
    with pytest.raises(DataError, match="no such file or folder: 'gone.png', 'also.png'"):
        predict(paths[0], "gone.png", "also.png", out=str(tmp_path / "p.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in"):
        predict(tmp_path / "empty")
    assert predict.out == ""


def test_folders_globs_and_lists(predict, paths, folder):
    whole = predict(folder / "val")
    assert [row["path"] for row in rows_of(whole)] == paths
    assert predict(f"{folder}/val/**/*.png") == whole
    assert predict("-", stdin=io.StringIO("\n".join(paths))) == whole


def test_names_order_and_number_of_folders_change_no_label(predict, folder, paths, tmp_path):  # fault 82
    plain = {row["path"]: row["label"] for row in rows_of(predict(folder / "val"))}
    for number, path in enumerate(paths[:5]):
        target = tmp_path / "other" / ("zebra", "circle")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / f"{number}.png")
    found = rows_of(predict(tmp_path / "other"))
    assert [plain[paths[int(Path(row["path"]).stem)]] for row in found] == [row["label"] for row in found]
    with pytest.raises(ExportError) as caught:
        predict(tmp_path / "other", check_classes=True)
    assert "the model lacks 'zebra' and the folder lacks 'square', 'stripes'" in str(caught.value)
    assert predict.out == ""
    assert predict(folder / "val", check_classes=True) == predict(folder / "val")
    assert len(rows_of(predict(folder, check_classes=True))) == 45
    with pytest.raises(ConfigError, match="--check-classes needs a folder"):
        predict(paths[0], check_classes=True)


@pytest.mark.slow
def test_two_processes_go_round_by_round_through_a_list(predict, run, paths, tmp_path):  # fault 81
    listed = [*paths[:4], "gone.png", *paths[4:7]]
    words = ["predict", str(run), "-", "--accelerator", "cpu", "--batch-size", "2"]
    first, second = worker.Ranks(2, tmp_path, worker.predict_in_rounds, words, listed, 2).results()
    (status, out, err), (other_status, other_out, _) = first[1], second[1]
    assert (status, other_status, other_out) == (8, 8, "") and "1 of 8 pictures could not be read" in err
    with pytest.raises(ExportError):
        predict("-", stdin=io.StringIO("\n".join(listed)), batch_size=2)
    assert [row["path"] for row in rows_of(out)] == listed
    assert [row["label"] for row in rows_of(out)] == [row["label"] for row in rows_of(predict.out)]


def test_a_whole_network_has_no_map():
    whole = WholeNetwork(TransferModule("test_resnet", 3, weights="random", image_size=32))
    for ask in (whole.forward_maps, whole.pool):
        with pytest.raises(BackboneError, match="test_resnet with its head has no feature map"):
            ask(torch.zeros(1, 3, 32, 32))
