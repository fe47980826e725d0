"""The border to scikit-learn: its own checks, every kind of X, and the network run once per picture."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils._set_output import ADAPTERS_MANAGER
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import validate_data

from transferkit.core.errors import BackboneError, ConfigError, DataError, TransferkitError, TransferkitWarning
from transferkit.core.records import Decoding
from transferkit.data.images.decode import UnreadableImage, decode_image, image_pixels
from transferkit.features.engine.engine import Engine
from transferkit.features.extract.extract import build_once, extract_features, frozen_backbone
from transferkit.features.probe.probe import fit_probe
from transferkit.features.sklearn import probe as probe_module
from transferkit.features.sklearn.extractor import FeatureExtractor
from transferkit.features.sklearn.inputs import InputError, NotFitted, list_items, pixels_digest, read_items
from transferkit.features.sklearn.probe import ImageProbe
from transferkit.models.heads.solver import LabelledRows, ProbeOptions

SMALL = {"image_size": 32, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(str(path) for path in folder.glob("*/*/*.png"))


@pytest.fixture(scope="module")
def labels(paths):
    return [path.split("/")[-2] for path in paths]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store for tests that do not count what is computed."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def ran(monkeypatch):
    """How many pictures the network was run on; the black one that measures widths is none."""
    count = [0]
    rows = Engine.rows

    def counting(self, images, **options):
        count[0] += int(images.flatten(1).any(dim=1).sum())
        return rows(self, images, **options)

    monkeypatch.setattr(Engine, "rows", counting)
    return count


def noise(height=20, width=24, seed=0, shape=(3,)):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *shape), dtype=np.uint8)


# -------------------------------------------------------------------------------------------- scikit-learn's own checks


def draw(X):
    """Rows of numbers as pictures: a square of grey for each number, so that checks which send numbers can be run."""
    levels = (127.5 + 127.5 * np.tanh(np.asarray(X, dtype=float) / 8)).astype(np.uint8)
    side = int(np.ceil(np.sqrt(levels.shape[1])))
    squares = np.zeros((len(levels), side * side), np.uint8)
    squares[:, : levels.shape[1]] = levels
    return list(np.kron(squares.reshape(-1, side, side), np.ones((1, 12, 12), np.uint8)))


def takes_numbers(tags):
    tags.input_tags.two_d_array, tags.input_tags.string = True, False
    return tags


class ExtractorOfNumbers(FeatureExtractor):
    def __sklearn_tags__(self):
        return takes_numbers(super().__sklearn_tags__())

    def fit(self, X, y=None):
        return super().fit(draw(validate_data(self, X)), y)

    def transform(self, X):
        return super().transform(draw(validate_data(self, X, reset=False)))


class ProbeOfNumbers(ImageProbe):
    def __sklearn_tags__(self):
        return takes_numbers(super().__sklearn_tags__())

    def fit(self, X, y):
        return super().fit(draw(validate_data(self, X)), y)

    def predict(self, X):
        return super().predict(draw(validate_data(self, X, reset=False)))

    def predict_proba(self, X):
        return super().predict_proba(draw(validate_data(self, X, reset=False)))


# No check is excepted: with numbers drawn as pictures all of them make sense, and all pass. The C is small because
# `check_class_weight_classifiers` wants noise not to be learned; with C = 1 StandardScaler and LogisticRegression on
# these 256 features fail it too.
CHECKED = [ExtractorOfNumbers(**SMALL), ProbeOfNumbers(**SMALL, classifier_args={"C": 0.01})]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", CHECKED, ids=lambda estimator: type(estimator).__name__)
def test_the_checks_are_all_there(estimator):
    names = {estimator_checks._check_name(check) for check in estimator_checks._yield_all_checks(estimator, True)}
    kind = "transformer_general" if isinstance(estimator, FeatureExtractor) else "classifiers_train"
    expected = (kind, "fit_idempotent", "estimators_pickle", "methods_subset_invariance", "dict_unchanged")
    assert {f"check_{name}" for name in expected} <= names and len(names) >= 40


def test_the_checks_can_fail():
    class Restless(ExtractorOfNumbers):
        def transform(self, X):
            return super().transform(X) + np.random.default_rng().standard_normal(256).astype(np.float32)

    results = check_estimator(Restless(**SMALL), on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    assert {"check_transformer_general", "check_methods_subset_invariance"} <= failed


def test_tags():
    tags = get_tags(FeatureExtractor())
    assert tags.input_tags.string and not tags.input_tags.two_d_array
    assert not tags.requires_fit and not tags.target_tags.required and tags.transformer_tags is not None
    tags = get_tags(ImageProbe())
    assert tags.input_tags.string and not tags.input_tags.two_d_array
    assert tags.requires_fit and tags.target_tags.required and tags.estimator_type == "classifier"


# ------------------------------------------------------------------------------------------------------------ the rows


@pytest.mark.parametrize("options", [{}, {"layer": "stage2"}, {"pool": "avgmax"}], ids=str)
def test_rows_are_those_of_extract_features(folder, tmp_path, options):
    table = extract_features(folder, store=tmp_path / "a", **SMALL, **options)
    rows = FeatureExtractor(cache=tmp_path / "b", **SMALL, **options).fit_transform(table.paths)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table.X)  # both computed
    back = FeatureExtractor(cache=tmp_path / "a", **SMALL, **options).transform(table.paths[::-1])
    np.testing.assert_array_equal(back, table.X[::-1])  # one read from the other's store


def test_what_fit_learns(paths, store):
    extractor = FeatureExtractor(cache=store, layer="stage2", **SMALL).fit(paths)
    assert (extractor.layer_, extractor.pool_, extractor.image_size_) == ("layer2", "avg", (32, 32))
    assert extractor.n_features_out_ == extractor.transform(paths[:2]).shape[1] == 64
    assert extractor.weights_sha256_ == frozen_backbone("transferkit/mini", "pretrained", 32).digest
    assert extractor.precision_ == "32"
    assert len(pickle.dumps(extractor)) < 2000  # names and numbers, no network


def test_fit_reads_no_file_and_runs_no_network(ran, tmp_path):
    FeatureExtractor(cache=tmp_path, **SMALL).fit([str(tmp_path / "absent.jpg")])
    assert ran == [0] and not list(tmp_path.iterdir())


def test_known_files_are_not_read_again_until_they_change(paths, tmp_path, read, ran):
    own = [shutil.copy(path, tmp_path / f"{at}.png") for at, path in enumerate(paths[:4])]
    extractor = FeatureExtractor(cache=tmp_path / "features", **SMALL)
    first = extractor.transform(own)
    assert len(read) == 4 and ran == [4]
    read.clear()
    np.testing.assert_array_equal(extractor.transform(own), first)
    assert read == [] and ran == [4]
    shutil.copy(paths[-1], own[2])
    again = extractor.transform(own)
    assert read == ["2.png"] and ran == [5]
    np.testing.assert_array_equal(again[[0, 1, 3]], first[[0, 1, 3]])
    assert not np.array_equal(again[2], first[2])


def test_kinds_of_x_give_equal_rows(paths, tmp_path, store):
    extractor = FeatureExtractor(cache=store, **SMALL)
    expected = extractor.transform(paths)
    pictures = [Image.open(path) for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    mixed = [paths[0], pictures[1], arrays[2], *(tmp_path / path for path in paths[3:])]
    for X in (pictures, arrays, mixed, tuple(mixed), np.stack(arrays), np.array(paths), np.array(paths, dtype=object)):
        np.testing.assert_array_equal(extractor.transform(X), expected)
    held = np.empty(3, dtype=object)
    held[:] = pictures[:3]
    np.testing.assert_array_equal(extractor.transform(held), expected[:3])


def test_a_series_is_taken_by_its_values(paths, store):
    class Series:
        """As a pandas Series: its labels, not its positions, are what indexing and iteration go by."""

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return np.array(self.values, dtype=object)

    extractor = FeatureExtractor(cache=store, **SMALL)
    np.testing.assert_array_equal(extractor.transform(Series(paths)), extractor.transform(paths))


def test_grey_arrays_and_views_of_arrays(tmp_path):
    extractor = FeatureExtractor(cache=tmp_path, **SMALL)
    grey = noise(shape=())
    colour = noise()
    frozen = colour.copy()
    frozen.setflags(write=False)
    rows = extractor.transform(
        [grey, np.stack([grey] * 3, axis=2), colour, frozen, colour[::-1, :, ::-1], colour.T.copy().T]
    )
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[2], rows[3])
    np.testing.assert_array_equal(rows[2], rows[5])
    np.testing.assert_array_equal(rows[4], extractor.transform([np.ascontiguousarray(colour[::-1, :, ::-1])])[0])
    assert not np.array_equal(rows[2], rows[4])


def test_equal_pictures_are_computed_once(ran, tmp_path):
    picture = noise()
    rows = FeatureExtractor(cache=tmp_path, **SMALL).transform([picture, picture.copy(), Image.fromarray(picture)])
    assert ran == [1] and np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])


def save(kind, path):
    """Write one picture of a kind whose rules the decoder knows."""
    colour, grey = Image.fromarray(noise()), Image.fromarray(noise(shape=()))
    exif = Image.Exif()
    exif[0x0112] = 6
    match kind:
        case "turned jpeg":
            colour.save(path, "JPEG", exif=exif)
        case "turned tiff":
            colour.save(path, "TIFF", exif=exif)
        case "cmyk":
            colour.convert("CMYK").save(path, "JPEG")
        case "palette":
            colour.quantize(16).save(path, "PNG", transparency=3)
        case "alpha":
            colour.putalpha(grey)
            colour.save(path, "PNG")
        case "16 bit":
            Image.fromarray(noise(shape=()).astype(np.uint16) * 257).save(path, "PNG")
        case "bilevel":
            grey.convert("1").save(path, "PNG")
        case "animation":
            colour.save(path, "GIF", save_all=True, append_images=[grey.convert("RGB")])


KINDS = ("turned jpeg", "turned tiff", "cmyk", "palette", "alpha", "16 bit", "bilevel", "animation")


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_pictures_are_converted_as_files_are(kind, tmp_path):
    path = tmp_path / "picture"
    save(kind, path)
    with Image.open(path) as picture:
        pixels = image_pixels(picture)
    np.testing.assert_array_equal(pixels, decode_image(path))
    assert pixels.shape == ((24, 20, 3) if kind.startswith("turned") else (20, 24, 3))


def test_pillow_pictures_are_left_as_they_are(tmp_path):
    save("alpha", tmp_path / "picture")
    with Image.open(tmp_path / "picture") as picture:
        before = picture.tobytes()
        image_pixels(picture)
        assert picture.mode == "RGBA" and picture.tobytes() == before


def test_pictures_without_a_range_and_bombs_are_refused():
    with pytest.raises(UnreadableImage, match="no agreed range"):
        image_pixels(Image.new("F", (4, 4)))
    with pytest.raises(UnreadableImage, match="4 x 5 pixels, more than the limit of 19"):
        image_pixels(Image.new("RGB", (4, 5)), decoding=Decoding(max_pixels=19))


def test_pixels_are_known_by_shape_and_values():
    pixels = noise(4, 6)
    expected = hashlib.sha256(b"transferkit pixels\x004 6\x00" + pixels.tobytes()).hexdigest()
    assert pixels_digest(pixels) == expected
    assert pixels_digest(pixels.reshape(6, 4, 3)) != expected  # the same bytes
    assert expected != hashlib.sha256(pixels.tobytes()).hexdigest()
    (picture,) = read_items([pixels])
    assert (picture.sha256, picture.name) == (expected, "X[0]")


def test_a_file_is_known_by_its_bytes(paths):
    (picture,) = read_items(paths[:1])
    assert picture.sha256 == hashlib.sha256(Path(paths[0]).read_bytes()).hexdigest()
    assert picture.content is None


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a.jpg", "X is one str, expected a list of pictures - pass [X]"),
        pytest.param(Image.new("RGB", (4, 4)), "X is one Image, expected a list", id="image"),
        ([], "0 samples"),
        (np.zeros((0,), dtype=object), "0 samples"),
        (None, "X is None (NoneType); expected a list of pictures"),
        ({"a.jpg"}, "(set); expected a list of pictures"),
        (noise(), "an array of uint8 of shape (20, 24, 3); expected a list of pictures, or one uint8 array"),
        (noise(), "pass [X] for one picture, list(X) for a batch of grey ones"),
        (np.zeros((2, 8, 8, 4), np.uint8), "shape (2, 8, 8, 4)"),
        (np.zeros((2, 8, 8, 3)), "array of float64 of shape (2, 8, 8, 3)"),
        (np.zeros((5, 7)), "array of float64 of shape (5, 7)"),
        (np.array([["a.jpg"], ["b.jpg"]]), "of a table, pass the column with the paths"),
        (["a.jpg", 3, None], "X[1] is 3 (int), X[2] is None (NoneType); expected a path, a Pillow image, or a uint8"),
        (["a.jpg", ""], "X[1] is '' (str)"),
        (["a.jpg", b"\xff\xd8"], "X[1] is b'\\xff\\xd8' (bytes)"),
        ([noise(), np.zeros((8, 8, 3))], "X[1] is an array of float64 of shape (8, 8, 3); expected"),
        ([np.zeros((8, 8, 4), np.uint8)], "X[0] is an array of uint8 of shape (8, 8, 4)"),
        ([np.zeros((0, 8, 3), np.uint8)], "X[0] is an array of uint8 of shape (0, 8, 3)"),
        (list(range(7)), "X[4] is 4 (int) and 2 more; expected"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(X, message):
    for call in (list_items, FeatureExtractor(**SMALL).fit, FeatureExtractor(**SMALL).transform):
        with pytest.raises(InputError) as caught:
            call(X)
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert isinstance(caught.value, DataError) and isinstance(caught.value, ValueError)


@pytest.fixture
def damaged(paths, tmp_path):
    """Pictures of which those at 1, 2, 4 and 5 cannot be read, each for its own reason."""
    half = tmp_path / "half.png"
    half.write_bytes(Path(paths[0]).read_bytes()[:200])
    return [paths[0], str(tmp_path / "absent.png"), half, paths[1], Image.new("F", (4, 4)), half, noise()]


def test_all_that_cannot_be_read_is_named(damaged, tmp_path):
    extractor = FeatureExtractor(cache=tmp_path / "store", **SMALL)
    probe = ImageProbe(cache=tmp_path / "store", **SMALL)
    for call in (extractor.transform, lambda X: probe.fit(X, [0, 1, 0, 1, 0, 1, 0])):
        with pytest.raises(InputError) as caught:
            call(damaged)
        for part in ("4 of 7 pictures cannot be read", "absent.png' (X[1]): No such file", "half.png' (X[2])",
                     "X[4]: floating-point pixels", "half.png' (X[5])"):  # fmt: skip
            assert part in str(caught.value)


def test_rows_of_nan(damaged, tmp_path):
    extractor = FeatureExtractor(cache=tmp_path / "store", on_error="nan", **SMALL)
    with pytest.warns(TransferkitWarning, match="4 of 7 pictures cannot be read: .*: their rows are NaN") as caught:
        rows = extractor.fit(damaged).transform(damaged)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert np.isnan(rows).all(axis=1).nonzero()[0].tolist() == [1, 2, 4, 5]
    assert np.isfinite(rows[[0, 3, 6]]).all()
    np.testing.assert_array_equal(rows[[0, 3, 6]], extractor.transform([damaged[0], damaged[3], damaged[6]]))
    with pytest.warns(TransferkitWarning, match="1 of 1 pictures"):
        assert extractor.transform(damaged[1:2]).shape == rows[1:2].shape


# ---------------------------------------------------------------------------------------------------------- manners


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "nann"}, "on_error is 'nann'. Did you mean 'nan'?"),
        ({"precision": "16"}, "precision is '16'"),
        ({"accelerator": "tpu"}, "accelerator is 'tpu'"),
        ({"batch_size": 0}, "batch-size is 0"),
        (
            {"batch_size": 2.5, "image_size": 3.5},
            "image_size is 3.5, expected a whole number or a text or a list; (2) batch_size is 2.5",
        ),
        ({"cache": 3}, "store is 3"),
        ({"layer": "stage9"}, "no layer 'stage9'"),
        ({"layer": "all"}, "layer is 'all', expected one layer - join several extractors by a FeatureUnion"),
        ({"pool": "mean"}, "pool is 'mean'"),
        ({"backbone": None}, "backbone is None"),
    ],
    ids=str,
)
def test_arguments_are_checked_by_fit_not_by_the_constructor(arguments, message, paths):
    extractor = FeatureExtractor(**{**SMALL, **arguments})
    assert extractor.get_params() == {**FeatureExtractor(**SMALL).get_params(), **arguments}
    for call in (extractor.fit, extractor.transform):
        with pytest.raises(ConfigError) as caught:
            call(paths)
        assert message in str(caught.value)


def test_unknown_backbones_and_missing_accelerators(paths):
    with pytest.raises(BackboneError, match="resnet18"):
        FeatureExtractor("resnett18").fit(paths)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="not on this machine"):
            FeatureExtractor(accelerator="gpu").fit(paths)


def test_numbers_of_a_grid_may_be_numpys(paths, store):
    sizes = np.array([32, 48])
    for size in sizes:
        extractor = FeatureExtractor(cache=store, accelerator="cpu", image_size=size, batch_size=np.int64(4))
        assert extractor.fit(paths).image_size_ == (size, size)


def test_stateless_until_fitted(paths, store):
    extractor = FeatureExtractor(cache=store, **SMALL)
    rows = extractor.transform(paths)
    with pytest.raises(NotFittedError):
        extractor.get_feature_names_out()
    np.testing.assert_array_equal(extractor.fit(paths[:1]).transform(paths), rows)
    assert extractor.get_feature_names_out().tolist() == [f"featureextractor{at}" for at in range(256)]


def test_a_fitted_extractor_insists_on_its_weights(paths, tmp_path):
    extractor = FeatureExtractor("test_resnet", weights="random", cache=tmp_path, **SMALL).fit(paths)
    rows = extractor.transform(paths)
    sent = pickle.dumps(extractor)
    np.testing.assert_array_equal(pickle.loads(sent).transform(paths), rows)
    build_once.cache_clear()  # as in another process: random weights are others now
    with pytest.raises(BackboneError, match="is not the network that this extractor was fitted with"):
        pickle.loads(sent).transform(paths)
    assert not np.array_equal(extractor.fit(paths).transform(paths), rows)  # fitting again is the way out
    extractor.set_params(backbone="transferkit/mini", weights="bundled")
    with pytest.raises(BackboneError, match="fit again"):
        extractor.transform(paths)


def test_a_pickled_extractor_makes_its_network_anew(paths, tmp_path):
    extractor = FeatureExtractor(cache=tmp_path / "a", **SMALL).fit(paths)
    sent = pickle.dumps(extractor.set_params(cache=str(tmp_path / "b")))
    build_once.cache_clear()
    np.testing.assert_array_equal(pickle.loads(sent).transform(paths), extractor.transform(paths))


def test_saved_estimators_name_the_room():
    """So that files of the first release can be read: it had them in one module of this name."""
    for kind in (FeatureExtractor, ImageProbe):
        assert pickle.loads(f"ctransferkit.features.sklearn\n{kind.__name__}\n.".encode()) is kind
        assert kind.__module__ == "transferkit.features.sklearn"


def test_clones_share_the_network_but_nothing_fitted(paths, store):
    extractor = FeatureExtractor(cache=store, **SMALL).fit(paths)
    copy = clone(extractor)
    assert copy.get_params() == extractor.get_params() and "n_features_out_" not in vars(copy)
    before = build_once.cache_info().misses
    copy.fit(paths)
    assert build_once.cache_info().misses == before


def test_threads_of_the_process_are_left_alone(paths, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("a setting of the whole process was changed")

    monkeypatch.setattr(torch, "set_num_threads", refuse)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", refuse)
    FeatureExtractor(cache=tmp_path, **SMALL).fit_transform(paths)


class Frame:
    def __init__(self, rows, columns):
        self.rows, self.columns = rows, list(columns)


def test_output_as_a_table(paths, store, monkeypatch):
    class Adapter:  # as scikit-learn's own for pandas, which need not be installed here
        container_lib = "frames"

        def create_container(self, output, original, columns, inplace=True):
            rows = output.rows if isinstance(output, Frame) else output
            return Frame(rows, columns() if callable(columns) else columns)

        def is_supported_container(self, X):
            return isinstance(X, Frame)

        def rename_columns(self, X, columns):
            X.columns = columns
            return X

        def hstack(self, Xs):
            raise NotImplementedError

    monkeypatch.setitem(ADAPTERS_MANAGER.adapters, "frames", Adapter())
    extractor = FeatureExtractor(cache=store, **SMALL).set_output(transform="frames")
    frame = extractor.fit_transform(paths)
    assert frame.columns == extractor.get_feature_names_out().tolist() and frame.rows.shape == (len(paths), 256)


# ---------------------------------------------------------------------------------------------- pipelines and searches


def pipeline(cache, **options):
    return make_pipeline(FeatureExtractor(cache=cache, **SMALL, **options), StandardScaler(), SVC())


def test_a_grid_search_runs_the_network_once_per_picture(ran, paths, labels, tmp_path):
    search = GridSearchCV(pipeline(tmp_path), {"svc__C": [0.1, 1, 10]}, cv=3, error_score="raise")
    search.fit(paths, labels)
    assert ran == [len(paths)] == [45]  # 10 fits
    X, y = FeatureExtractor(cache=tmp_path, **SMALL).transform(paths), np.array(labels)
    plain = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [0.1, 1, 10]}, cv=3).fit(X, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    assert search.best_score_ > 0.5 and ran == [45]


def test_a_grid_search_over_layers_runs_it_once_per_layer(ran, paths, labels, tmp_path):
    grid = {"featureextractor__layer": ["stage1", "stage3"], "svc__C": [1, 10]}
    search = GridSearchCV(pipeline(tmp_path), grid, cv=3, error_score="raise").fit(paths, labels)
    assert ran == [2 * 45] and search.best_params_["featureextractor__layer"] in ("stage1", "stage3")


def test_layers_joined(paths, store):
    parts = [(layer, FeatureExtractor(cache=store, layer=layer, **SMALL)) for layer in ("stage2", "pooled")]
    union = FeatureUnion(parts)
    rows = union.fit_transform(paths)
    assert rows.shape == (45, 64 + 256)
    assert union.get_feature_names_out()[0] == "stage2__featureextractor0"


def test_cross_validation_in_threads(paths, labels, tmp_path):
    import joblib

    with joblib.parallel_backend("threading"):
        side_by_side = cross_val_score(pipeline(tmp_path / "a"), paths, labels, n_jobs=2, error_score="raise")
    one_by_one = cross_val_score(pipeline(tmp_path / "b"), paths, labels, error_score="raise")
    np.testing.assert_array_equal(side_by_side, one_by_one)


@pytest.mark.slow  # two processes that start and import everything
def test_cross_validation_in_processes(ran, paths, labels, tmp_path):
    from joblib.externals.loky import get_reusable_executor

    try:
        side_by_side = cross_val_score(pipeline(tmp_path), paths, labels, n_jobs=2, error_score="raise")
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert ran == [0]
    one_by_one = cross_val_score(pipeline(tmp_path), paths, labels, error_score="raise")
    assert ran == [0]  # all of it lies in the store that the processes shared
    np.testing.assert_array_equal(side_by_side, one_by_one)


# ------------------------------------------------------------------------------------------------------------ the probe


def test_the_probe_is_fit_probe_on_the_features(paths, labels, store):
    probe = ImageProbe(cache=store, folds=3, seed=4, **SMALL).fit(paths, labels)
    assert probe.classes_.tolist() == ["circle", "square", "stripes"]
    X = FeatureExtractor(cache=store, **SMALL).transform(paths)
    y = np.unique(labels, return_inverse=True)[1]
    groups = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    expected = fit_probe(LabelledRows(X, y, 3, groups), ProbeOptions(folds=3), seed=4)
    assert probe.choice_ == expected.choice and "3 folds" in probe.choice_["criterion"]
    np.testing.assert_array_equal(probe.predict_proba(paths), expected.probs(X))
    np.testing.assert_array_equal(probe.predict(paths), probe.classes_[expected.predict(X)])
    assert probe.score(paths, labels) == np.mean(probe.predict(paths) == np.array(labels)) > 0.5


def test_equal_pictures_stay_in_one_fold(paths, labels, tmp_path, monkeypatch):
    copied = tmp_path / "copied.png"
    shutil.copy(paths[0], copied)
    spy = Mock(side_effect=fit_probe)
    monkeypatch.setattr(probe_module, "fit_probe", spy)
    ImageProbe(cache=tmp_path / "store", **SMALL).fit([*paths, copied], [*labels, labels[0]])
    groups = list(spy.call_args.args[0].groups)
    assert groups[-1] == groups[0] and len(set(groups)) == 45


@pytest.mark.parametrize(
    ("classifier", "arguments", "choice"),
    [("logistic", {"C": 0.1}, {"C": 0.1}), ("knn", {"k": 3}, {"k": 3}), ("sklearn.svm.SVC", None, {})],
)
def test_classifiers(classifier, arguments, choice, paths, labels, store):
    probe = ImageProbe(cache=store, classifier=classifier, classifier_args=arguments, **SMALL).fit(paths, labels)
    assert choice.items() <= probe.choice_.items()
    np.testing.assert_allclose(probe.predict_proba(paths).sum(axis=1), 1, atol=1e-5)
    assert probe.score(paths, labels) > 0.5
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(probe)).predict(paths), probe.predict(paths))


def test_weights_by_label(paths, labels, store):
    few = [at for at, label in enumerate(labels) if label != "circle" or at % 5 == 0]
    X, y = [paths[at] for at in few], np.array(labels)[few]
    count = {label: float(np.sum(y == label)) for label in set(labels)}
    options = {"cache": store, "classifier_args": {"C": 0.1}, **SMALL}
    balanced = ImageProbe(class_weight="balanced", **options).fit(X, y).predict_proba(paths)
    by_hand = {label: len(y) / (3 * number) for label, number in count.items()}
    np.testing.assert_allclose(
        ImageProbe(class_weight=by_hand, **options).fit(X, y).predict_proba(paths), balanced, atol=1e-5
    )
    assert np.abs(ImageProbe(**options).fit(X, y).predict_proba(paths) - balanced).max() > 1e-2
    with pytest.raises(ConfigError, match="class_weight does not fit the labels of y"):
        ImageProbe(class_weight={"circel": 2.0}, **options).fit(X, y)
    with pytest.raises(ConfigError, match="class_weight is 'balance'"):
        ImageProbe(class_weight="balance", **options).fit(X, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        (["a"] * 44, "y has 44 labels for 45 pictures"),
        (["a"] * 45, "y has 1 class"),
        (np.linspace(0, 1, 45), "Unknown label type: continuous"),
        (np.zeros((45, 2)), "y has no label that some pictures have and others lack"),
        ([*range(44), float("nan")], "NaN"),
        (np.array(["a", 1, None] * 15, dtype=object), "expected y of shape (N,)"),
    ],
    ids=["none", "short", "one class", "continuous", "two columns", "gap", "mixed"],
)
def test_labels_are_checked(y, message, paths):
    with pytest.raises(InputError) as caught:
        ImageProbe(**SMALL).fit(paths, y)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "y", [np.arange(45) % 3 + 7, np.arange(45) % 2 == 0, np.array(["b", "a", "c"] * 15, dtype=object)]
)
def test_labels_keep_their_kind(y, paths, store):
    probe = ImageProbe(cache=store, classifier_args={"C": 1e-3}, **SMALL).fit(paths, y)
    assert probe.classes_.tolist() == sorted(set(y.tolist()))
    assert probe.predict(paths).dtype == y.dtype and set(probe.predict(paths)) <= set(y)


def test_a_probe_that_is_not_fitted(paths):
    for call in (ImageProbe().predict, ImageProbe().predict_proba):
        with pytest.raises(NotFitted, match="not fitted yet - call fit") as caught:
            call(paths)
        assert isinstance(caught.value, NotFittedError) and isinstance(caught.value, TransferkitError)


def test_the_probe_in_a_search(ran, paths, labels, tmp_path):
    search = GridSearchCV(
        ImageProbe(cache=tmp_path, classifier="knn", **SMALL),
        {"classifier_args": [{"k": 1}, {"k": 5}]},
        cv=3,
        error_score="raise",
    ).fit(paths, labels)
    assert ran == [45] and search.best_params_["classifier_args"]["k"] in (1, 5)


def test_amounts_are_for_a_regressor_behind_the_features(paths, store):
    """scikit-learn's own, for one target or several; the classifier says so."""
    amounts = np.random.default_rng(0).normal(size=(len(paths), 2))
    with pytest.raises(InputError, match="for amounts put FeatureExtractor before a regressor"):
        ImageProbe(**SMALL).fit(paths, amounts[:, 0])
    pipe = make_pipeline(FeatureExtractor(**SMALL, cache=store), StandardScaler(), RidgeCV())
    assert pipe.fit(paths, amounts).predict(paths[:3]).shape == (3, 2)
    assert pipe.fit(paths, amounts[:, 0]).predict(paths[:3]).shape == (3,)
