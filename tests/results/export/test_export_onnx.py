import copy
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_runs import CLASSES, draw_pictures, make_run, read_by_example, run_example
from gallery import every_kind
from PIL import Image

from transferkit import __version__
from transferkit.core.errors import ExportError
from transferkit.core.records import DataConfig, Decoding
from transferkit.data.augment.normalise import normalise
from transferkit.data.images.decode import decode_image
from transferkit.data.images.resize import fit
from transferkit.models.artifact import load_model
from transferkit.models.calibration.calibration import Calibration
from transferkit.options.results import ExportConfig
from transferkit.results.export import onnx as onnx_format
from transferkit.results.export.check import Comparison, compare
from transferkit.results.export.export import export
from transferkit.results.export.onnx import build_onnx, load_onnx, quantise, write_onnx
from transferkit.results.export.preprocessing import preprocessing_graph
from transferkit.results.predict.predictor import Predictor, load

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

TEMPERATURE = 1.7
INSIDE = onnx_format.FORMAT.limits(ExportConfig(run="x", preprocessing="inside"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    calibration = Calibration("temperature", TEMPERATURE, fitted_on="val")
    metrics = {"selection": {"monitor": "val_acc", "epoch": 3, "kept": "epoch 3"}}
    root = tmp_path_factory.mktemp("export")
    return make_run(root / "run", calibration=calibration, metrics=metrics, config={"ema": 0.99})


@pytest.fixture(scope="module")
def pictures(run):
    return sorted(run.parent.glob("run-pictures/val/cat/*.jpg"))


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """The file of the verb and the network in it, made once: tracing takes seconds."""
    out, networks = tmp_path_factory.mktemp("out") / "it's.onnx", []

    def build(*arguments, **options):
        networks.append(build_onnx(*arguments, **options).SerializeToString())
        return onnx.load_from_string(networks[0])

    import onnx

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_format, "build_onnx", build)
        assert export(ExportConfig(run=str(run), out=str(out), quiet=True)) == out
    return out, onnx.load_from_string(networks[0])


@pytest.fixture(scope="module")
def exported(made):
    return made[0]


@pytest.fixture(scope="module")
def core(made):
    """The network as ONNX without facts, which the variants start from."""
    return made[1]


@pytest.fixture(scope="module")
def predictor(run):
    return load(run)


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def normalised(path, config):
    """What the network takes, by hand: `(x / 255 - mean) / std`."""
    pixels = fit(decode_image(path, min_side=config.decode_side), config).transpose(2, 0, 1) / 255
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (config.mean, config.std))
    return ((pixels - mean) / std).astype(np.float32)


# ---- the file -------------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_torch_for_batches_of_any_size(run, exported, pictures):  # fault 85
    module, info = load_model(run)
    session = session_of(exported)
    for size in (1, 2, 7):
        images = np.stack([normalised(path, info.preprocessing) for path in pictures[:size]])
        probabilities, logits = session.run(["probabilities", "logits"], {"images": images})
        with torch.inference_mode():
            expected = module(torch.from_numpy(images)).numpy()
        assert np.abs(logits - expected).max() <= 1e-4
        powers = np.exp(expected / TEMPERATURE - (expected / TEMPERATURE).max(axis=1, keepdims=True))
        assert np.abs(probabilities - powers / powers.sum(axis=1, keepdims=True)).max() <= 1e-5
    assert len(set(logits.argmax(axis=1).tolist())) > 1  # the pictures tell models apart


def test_the_file_describes_itself_and_names_nothing_of_this_machine(run, exported):  # fault 84, fault 85, fault 86
    facts = session_of(exported).get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(CLASSES)
    half = (0.5, 0.5, 0.5)
    expected = DataConfig((32, 32), half, half, crop_pct=0.95)
    assert DataConfig.from_dict(json.loads(facts["preprocessing"])) == expected == load_model(run)[1].preprocessing
    assert json.loads(facts["preprocessing"])["decode_side"] == 64
    assert float(facts["temperature"]) == TEMPERATURE and json.loads(facts["calibration"])["method"] == "temperature"
    assert facts["backbone"] == "test_resnet" and facts["head"] == "linear"
    assert facts["transferkit"] == __version__ and facts["precision"] == "32"
    assert facts["sha256"] == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert facts["weights"] == "moving average (EMA 0.99) of the weights at epoch 4, chosen by val_acc"
    data = exported.read_bytes()
    for text in (str(run.parent), str(Path(torch.__file__).parents[1]), str(Path(onnx_format.__file__).parents[2])):
        assert text.encode() not in data
    assert sorted(path.name for path in exported.parent.iterdir()) == ["it's.onnx", "it's_example.py"]


def test_the_example_runs_without_torch_and_agrees_with_predict(exported, predictor, pictures, tmp_path):  # fault 124
    names = ("turned.jpg", "clear.png", "grey.png", "small.png", "deep.png", "deep.tif")
    turned, clear, grey, small, *deep = (tmp_path / name for name in names)
    with Image.open(pictures[0]) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(turned, exif=exif, quality=95)
        image.convert("L").save(grey)
        image.convert("RGBA").save(clear)
        image.resize((11, 9)).save(small)
        for path in deep:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    with Image.open(clear) as image:
        image.putalpha(100)
        image.save(clear)
    paths = [*pictures, turned, clear, grey, small, *deep]
    script = exported.with_name("it's_example.py")
    rows = run_example(script, paths)
    expected = predictor.predict(paths)
    assert [row[:2] for row in rows] == [[item.path, item.label] for item in expected]
    assert [float(row[2]) for row in rows] == pytest.approx([item.probability for item in expected], abs=5e-3)
    assert len({row[1] for row in rows}) > 1
    lines = [
        line
        for line in script.read_text(encoding="utf-8").splitlines()[1:]
        if line and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 52


def test_the_example_fits_pictures_to_the_last_bit_where_no_side_shrinks(exported, predictor, tmp_path):  # fault 124
    config, generator = predictor.info.preprocessing, np.random.default_rng(0)
    sizes = [(1, 1), (1, 30), (32, 2), (33, 33), *map(tuple, generator.integers(1, 34, (60, 2))), (60, 9), (20, 300)]
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    made = read_by_example(exported.with_name("it's_example.py"), paths, tmp_path / "made.npz")
    grown = 0
    for path, size, (array,) in zip(paths, sizes, made, strict=True):
        expected = normalised(path, config)
        level = 1 / 255 / np.reshape(config.std, (3, 1, 1))
        if max(size) <= 33:  # the box of 95 % is at most 32 pixels wide and high
            np.testing.assert_array_equal(array, expected, err_msg=str(size))
            grown += min(size) < 30
        else:  # the mean of pixels may be exactly half a level, which may be rounded either way
            apart = np.abs(array - expected) / level
            assert apart.max() < 1.01 and (apart > 0.01).mean() < 0.01, size
    assert grown > 50


@pytest.mark.slow
def test_graph_and_example_show_whole_pictures_to_a_model_that_wants_them(tmp_path):
    run, generator = make_run(tmp_path / "run"), np.random.default_rng(3)
    facts = json.loads((run / "model.json").read_text(encoding="utf-8"))
    facts["preprocessing"] |= {"crop_mode": "pad", "crop_pct": 1.0}
    (run / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    config = load_model(run)[1].preprocessing
    sizes = [(20, 31), (7, 32), (90, 40), (40, 91), (1, 200)]
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    export(ExportConfig(run=str(run), quiet=True))
    level = 1 / 255 / np.reshape(config.std, (3, 1, 1))
    for path, (array,) in zip(
        paths, read_by_example(run / "run_example.py", paths, tmp_path / "made.npz"), strict=True
    ):
        expected = normalised(path, config)
        # Padding is the mean in whole levels: of 0.5, which lies between two of them, exactly half a level off.
        assert np.abs(expected[:, 0, 0] * config.std).max() <= 0.5 / 255 * (1 + 1e-6)
        apart = np.abs(array - expected) / level
        assert apart.max() < 1.01 and (apart > 0.01).mean() < 0.01, path.name
    rows, said = run_example(run / "run_example.py", paths), load(run).predict(paths)
    assert [row[1] for row in rows] == [item.label for item in said]


USED = Decoding(ground="#2060a0", grey_bits=10, max_pixels=1_500_000)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A run whose pictures were decoded in a way of its own, and a picture of every kind."""
    folder = tmp_path_factory.mktemp("painted")
    run = make_run(folder / "run", decoding=USED)
    for name, data in every_kind().items():
        (folder / name).write_bytes(data)
    return run, [folder / name for name in every_kind()]


def test_the_example_names_every_kind_of_picture_as_predict_does(painted):  # fault 124
    run, paths = painted
    export(ExportConfig(run=str(run), quiet=True))
    rows, expected = run_example(run / "run_example.py", paths), load(run).predict(paths)
    assert [row[:2] for row in rows] == [[item.path, item.label] for item in expected]
    assert [float(row[2]) for row in rows] == pytest.approx([item.probability for item in expected], abs=5e-3)
    assert len({row[1] for row in rows}) > 1


def test_the_example_decodes_every_kind_of_picture_to_the_last_bit(painted, tmp_path):  # fault 124
    run, paths = painted
    out = tmp_path / "inside.onnx"
    export(ExportConfig(run=str(run), out=str(out), preprocessing="inside", quiet=True))
    config = load_model(run)[1].preprocessing
    assert config.decoding == USED
    made = read_by_example(out.with_name("inside_example.py"), paths, tmp_path / "made.npz")
    for path, array in zip(paths, made, strict=True):
        expected = decode_image(path, min_side=config.decode_side, decoding=USED)
        np.testing.assert_array_equal(array[0], expected, err_msg=path.name)
        usual = decode_image(path, min_side=config.decode_side)
        tells = "alpha" in path.name or "level" in path.name or path.name.startswith(("ten", "sixteen.", "white"))
        assert tells == (usual.shape != expected.shape or (usual != expected).any()) or path.name == "turned.png", path


def test_the_example_refuses_what_predict_refuses(painted, tmp_path):
    run, _ = painted
    pictures = {"wide.png": Image.new("RGB", (1501, 1000)), "float.tif": Image.new("F", (9, 9))}
    for name, image in pictures.items():
        image.save(tmp_path / name)
    script, model = run / "run_example.py", load(run)
    if not script.exists():
        export(ExportConfig(run=str(run), quiet=True))
    for name, reason in (("wide.png", "1501 x 1000 pixels, more than"), ("float.tif", "have no agreed range")):
        assert reason in model.predict(tmp_path / name)[0].error
        with pytest.raises(AssertionError, match=reason):
            run_example(script, [tmp_path / name])
    assert model.predict(tmp_path / "wide.png")[0].label is None
    raised = load(run, max_pixels=2_000_000)
    assert raised.predict(tmp_path / "wide.png")[0].label is not None


def test_the_example_would_fail_where_it_needed_torch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import torch", encoding="utf-8")
    with pytest.raises(AssertionError, match="blocked: torch"):
        run_example(script, [])


# ---- preprocessing inside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["center", "squash", "pad"])
def test_the_graph_fits_pictures_as_evaluation_does(interpolation, mode):
    import onnxruntime

    config = DataConfig(image_size=(24, 30), crop_pct=0.9, crop_mode=mode, interpolation=interpolation)
    graph = preprocessing_graph(config)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for height, width in ((200, 133), (61, 97), (24, 30), (25, 31), (1, 1), (7, 90), (90, 7), (10, 12)):
        pictures = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        (images,) = session.run(None, {"pictures": pictures})
        levels = (images.transpose(0, 2, 3, 1) * config.std + config.mean) * 255
        expected = np.stack([fit(picture, config) for picture in pictures])
        apart = np.abs(levels - expected)
        shrinks = {
            "center": min(height / 24, width / 30) * config.crop_pct >= 1,
            "squash": height >= 24 and width >= 30,
            "pad": max(height / 24, width / 30) >= 1,
        }[mode]
        if shrinks:
            assert (apart > 0.01).mean() <= 1e-3  # exact halves may round either way
        if interpolation != "nearest":  # at a tie it may take the other neighbour
            assert apart.max() <= 1.01
        else:
            assert (apart > 0.01).mean() <= 0.1


def test_inside_takes_decoded_pictures_of_any_size(run, core, predictor, pictures, tmp_path):
    _, info = load_model(run)
    path = tmp_path / "inside.onnx"
    write_onnx(copy.deepcopy(core), path, {"a": "b"}, info, preprocessing="inside")
    result = compare(load_onnx(path, preprocessing="inside"), predictor, list(map(str, pictures)), inside=True)
    assert result.problem(INSIDE) is None and result.pictures == 20
    assert result.probability <= 5e-3
    session = session_of(path)
    assert [(item.name, item.type) for item in session.get_inputs()] == [("pictures", "tensor(uint8)")]
    pixels = decode_image(pictures[1])
    (one,) = session.run(["logits"], {"pictures": pixels[None]})
    (three,) = session.run(["logits"], {"pictures": np.stack([pixels[:, ::-1], pixels, pixels])})
    assert np.abs(three[1:] - one).max() <= 1e-5 < np.abs(three[0] - one).max()


# ---- less precision -------------------------------------------------------------------------------------------------


def test_int8_is_measured_on_pictures_and_agrees(run, core, predictor, pictures, tmp_path):
    import onnx

    _, info = load_model(run)
    paths = list(map(str, pictures))
    small = quantise(core, predictor, [*paths[:4], "missing.jpg"], static=True)
    types = {item.name: item.data_type for item in small.graph.initializer}
    quantised = [node for node in small.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in types]
    assert {types[node.input[0]] for node in quantised} >= {onnx.TensorProto.UINT8}
    (last,) = (node for node in small.graph.node if "logits" in node.output)
    assert types[last.input[1]] == onnx.TensorProto.FLOAT  # the head stays as it is
    first = next(node for node in small.graph.node if node.op_type == "Conv")
    assert (first.input[0], types[first.input[1]]) == ("images", onnx.TensorProto.FLOAT)  # and what sees pixels
    path = tmp_path / "int8.onnx"
    write_onnx(small, path, {}, info, preprocessing="inside")
    assert path.stat().st_size < 0.45 * len(core.SerializeToString())
    result = compare(load_onnx(path, preprocessing="inside"), predictor, paths, inside=True)
    assert result.agreement >= 0.9 and 0 < result.probability < 0.2


def test_layers_that_see_pixels_stay_as_they_are_and_no_others():
    """Two stems, one behind padding; the third layer only takes the number of pictures from them."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "axes": np.array([-1]), "rest": np.array([-1]),
               **{name: generator.normal(size=shape).astype(np.float32)
                  for name, shape in {"one": (8, 3, 3, 3), "two": (8, 3, 1, 1), "three": (8, 8)}.items()}}  # fmt: skip
    nodes = [
        helper.make_node("Pad", ["images", "pads"], ["padded"], "pad"),
        helper.make_node("Conv", ["padded", "one"], ["a"], "stem1"),
        helper.make_node("Conv", ["images", "two"], ["b"], "stem2"),
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"], "pool"),
        helper.make_node("Shape", ["images"], ["count"], "shape", end=1),
        helper.make_node("Concat", ["count", "rest"], ["target"], "join", axis=0),
        helper.make_node("Reshape", ["mean", "target"], ["rows"], "reshape"),
        helper.make_node("MatMul", ["rows", "three"], ["logits"], "later"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    small = quantise(model, None, [], static=False)
    kinds = [node.op_type for node in small.graph.node]
    assert kinds.count("Conv") == 2 and "ConvInteger" not in kinds
    assert kinds.count("MatMulInteger") == 1 and "MatMul" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize(("precision", "preprocessing"), [("32", "inside"), ("fp16", "outside"), ("int8", "inside")])
def test_families_in_every_precision(backbone, precision, preprocessing, tmp_path):
    run = make_run(tmp_path / "run", backbone=backbone, image_size=160 if backbone == "test_vit" else 64)
    config = ExportConfig(run=str(run), precision=precision, preprocessing=preprocessing, quiet=True)
    out = export(config)
    pictures = sorted((tmp_path / "run-pictures/val/cat").glob("*.jpg"))
    rows = run_example(run / "run_example.py", pictures)
    expected = [item.label for item in load(run).predict(pictures)]
    assert out == run / "run.onnx"
    assert np.mean([row[1] == label for row, label in zip(rows, expected, strict=True)]) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "cosine"])
def test_heads_and_vector_scaling(head, tmp_path):
    calibration = Calibration("vector", scale=(1.0, 2.0, 0.5), bias=(0.1, 0.0, -0.3))
    run = make_run(tmp_path / "run", head=head, calibration=calibration)
    out = export(ExportConfig(run=str(run), quiet=True))
    module, info = load_model(run)
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    (probabilities,) = session_of(out).run(["probabilities"], {"images": images})
    with torch.inference_mode():
        logits = module(torch.from_numpy(images)).double().numpy()
    scaled = (logits - logits.mean(axis=1, keepdims=True)) * info.calibration.scale + info.calibration.bias
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    assert np.abs(probabilities - powers / powers.sum(axis=1, keepdims=True)).max() <= 1e-5


# ---- what must not appear -------------------------------------------------------------------------------------------


class Off:
    """A model that is wrong in one way."""

    def __init__(self, model, way):
        self.model, self.way = model, way

    def __call__(self, images):
        probabilities, logits = self.model(images)
        if self.way == "logits":
            return probabilities, logits + 1e-2
        if self.way == "labels":
            return probabilities[:, ::-1], logits
        if self.way == "nan":
            return probabilities, logits * np.nan
        if self.way == "batch" and len(images) > 1:
            return probabilities[:1], logits[:1]
        if self.way == "rows" and len(images) == 7:
            return probabilities, np.roll(logits, 1, axis=0)
        return probabilities, logits


@pytest.fixture
def prepared(core, monkeypatch):
    """Exports without tracing the network again."""
    monkeypatch.setattr(onnx_format, "build_onnx", lambda module, info, half, unlike: copy.deepcopy(core))


@pytest.mark.parametrize(
    ("way", "message", "before"),
    [
        ("logits", "logits differ by 0.01", None),
        ("labels", r"of 9 pictures get another class \(at most 0 may\)", b"an older one"),
        ("nan", "NaN or infinity", b"an older one"),
        ("batch", "probabilities and .* for a batch of 2", None),
        ("rows", "logits differ", b"an older one"),
    ],
)
def test_a_mismatch_leaves_no_file_and_an_old_one_as_it_was(
    way, message, before, run, prepared, tmp_path, monkeypatch
):  # fault 85
    real = onnx_format.load_onnx
    monkeypatch.setattr(onnx_format, "load_onnx", lambda *words, **more: Off(real(*words, **more), way))
    out = tmp_path / "model.onnx"
    if before is not None:
        out.write_bytes(before)
    with pytest.raises(ExportError, match=message) as caught:
        export(ExportConfig(run=str(run), out=str(out), overwrite=before is not None, pictures=9, quiet=True))
    assert caught.value.exit_status == 8
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_what_onnxruntime_does_not_take_is_told(run, prepared, tmp_path, monkeypatch):  # fault 85
    def truncated(model, path, *arguments, **options):
        write_onnx(model, path, *arguments, **options)
        path.write_bytes(path.read_bytes()[:5000])

    monkeypatch.setattr(onnx_format, "write_onnx", truncated)
    with pytest.raises(ExportError, match="onnxruntime does not take the file"):
        export(ExportConfig(run=str(run), out=str(tmp_path / "model.onnx"), quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_int8_falls_back_to_ranges_per_batch(run, prepared, core, tmp_path, monkeypatch, capsys):
    ways = []
    monkeypatch.setattr(
        onnx_format, "quantise", lambda model, predictor, paths, *, static: ways.append((static, len(paths))) or core
    )
    results = iter([Comparison(20, 15, 0.1, 0.1), Comparison(20, 20, 0.01, 0.01, ratio=2.0, timed=8)])
    mixing = []

    def compared(*arguments, **options):
        mixing.append(options["mixing"])
        return next(results)

    monkeypatch.setattr("transferkit.results.export.export.compare", compared)
    export(ExportConfig(run=str(run), out=str(tmp_path / "a.onnx"), precision="int8"))
    assert mixing == [False, True]  # ranges per batch are of all its pictures
    assert ways == [(True, 12), (False, 12)]  # measured on the training pictures
    text = capsys.readouterr().out
    assert (
        "int8 dynamic, ranges per batch" in text and "int8 static was tried before and kept 75.0% of the labels" in text
    )
    assert "100.0% the same on 20 validation pictures of the run" in text and "2.00 times torch" in text
    assert str(tmp_path / "a_example.py") in text


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_the_line_to_install(name, run, monkeypatch):  # fault 85
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=rf"{name} is not installed.* pip install 'transferkit\[onnx\]'"):
        export(ExportConfig(run=str(run), quiet=True))


def test_a_network_too_large_for_one_file_is_refused(run, monkeypatch):
    monkeypatch.setattr("transferkit.results.export.onnx.LARGEST", 1000)
    with pytest.raises(ExportError, match="one ONNX file holds 2 GB - pass --precision fp16"):
        build_onnx(*load_model(run))


def test_a_backbone_that_cannot_be_traced_is_told(run):
    class Stubborn(torch.nn.Module):
        def forward(self, features):
            return features[:, :3] if features.sum().item() > 0 else features[:, 3:6]

    module, info = load_model(run)
    module.head = Stubborn()
    with pytest.raises(
        ExportError, match="torch cannot trace test_resnet with the head linear for batches of any size"
    ):
        build_onnx(module, info)


# ---- the comparison -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_answers_that_depend_on_the_batch_are_compared_twice(inside, run, predictor, pictures):  # fault 85
    """Wrong where the other view of it is not looked at: alone, or where the graph prepares pictures, among others."""
    module, info = load_model(run)

    def other(images):
        if inside:  # of one size in a batch; the network itself is not asked
            shown = np.stack([fit(picture, info.preprocessing) for picture in images])
            images = normalise(torch.from_numpy(shown), info.preprocessing).numpy()
        with torch.inference_mode():
            logits = module(torch.from_numpy(images))
        predictions = module.task.predictions(logits, info.calibration).numpy()
        wrong = (images != images[0]).any() if inside else len(images) == 1
        return predictions[:, [1, 2, 0]] if wrong else predictions, logits.numpy()

    paths = list(map(str, pictures))
    once = compare(other, predictor, paths, inside=inside, timed=False)
    twice = compare(other, predictor, paths, inside=inside, mixing=True, timed=False)
    assert (once.same, once.pictures) == (20 if inside else 19, 20)
    assert (twice.same, twice.pictures) == (0, 20)


def test_how_many_pictures_may_differ():
    def problem(same, pictures, limits, **more):
        return Comparison(pictures, same, more.pop("probability", 0.0), **more).problem(onnx_format.LIMITS[limits])

    assert problem(200, 200, "32", logits=0.9e-3, largest_logit=10.0) is None
    assert "logits differ by 0.0011 (at most 0.001 may)" in problem(200, 200, "32", logits=1.1e-3, largest_logit=10.0)
    assert "1 of 200 pictures get another class (at most 0 may)" in problem(199, 200, "32", logits=0.0)
    assert problem(194, 200, "int8") is None and "at most 6 may" in problem(193, 200, "int8")
    assert problem(11, 12, "int8") is None and problem(10, 12, "int8") is not None  # one of ten or more always may
    assert problem(8, 9, "int8") is not None
    assert problem(198, 200, "fp16", probability=0.01) is None
    assert "probabilities differ by 0.03" in problem(200, 200, "fp16", probability=0.03)
    assert "NaN" in problem(200, 200, "int8", probability=float("nan"))


def test_equal_probabilities_count_as_the_same_class(run, tmp_path):
    """A tie is broken by rounding; neither class is wrong."""
    module, info = load_model(run)
    with torch.no_grad():
        module.head.linear.weight[1] = module.head.linear.weight[0]
        module.head.linear.bias[:] = torch.tensor([50.0, 50.0, 0.0])
    predictor = Predictor(module, info)
    paths = list(map(str, draw_pictures(tmp_path, 5)))

    def other(images):
        with torch.inference_mode():
            logits = module(torch.from_numpy(images)).numpy()
        probabilities = info.calibration.probs(torch.from_numpy(logits)).numpy()
        return probabilities + np.float32([0.0, 1e-7, 0.0]), logits

    assert compare(other, predictor, paths).agreement == 1.0


def test_pictures_that_cannot_be_read_are_left_out(exported, predictor, pictures, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    model = load_onnx(exported)
    assert compare(model, predictor, [str(bad), *map(str, pictures[:3])]).pictures == 3
    with pytest.raises(ExportError, match="none of the 1 pictures can be read - pass --data"):
        compare(model, predictor, [str(bad)])
