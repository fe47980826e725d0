"""The border to scikit-learn: good manners, the same features, the network once per picture."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from transferkit.data.decode import decode_image
from transferkit.errors import ConfigError, DataError, TransferkitWarning
from transferkit.features.engine import Engine
from transferkit.features.extract import extract_features
from transferkit.features.inputs import InputError, pixels_digest
from transferkit.features.sklearn import FeatureExtractor, ImageProbe


@pytest.fixture
def paths(folder):
    return sorted((folder / "train").glob("*/*.png"))


@pytest.fixture
def labels(paths):
    return [path.parent.name for path in paths]


@pytest.fixture
def extractor(tmp_path):
    return FeatureExtractor(image_size=32, cache=tmp_path / "store", precision="32")


@pytest.fixture
def seen(monkeypatch):
    """Pictures that any engine has run on."""
    counted = []
    rows = Engine.rows

    def counting(self, images, **options):
        counted.append(len(images))
        return rows(self, images, **options)

    monkeypatch.setattr(Engine, "rows", counting)
    return counted


# ---- features ---------------------------------------------------------------------------------------------------


def test_the_features_are_extract_features(folder, paths, extractor, tmp_path):
    table = extract_features(folder, image_size=32, precision="32", store=tmp_path / "other").split("train")
    order = [table.paths.index(str(path)) for path in paths]
    X = extractor.fit_transform(paths)
    np.testing.assert_allclose(X, table.X[order], rtol=1e-4, atol=1e-6)
    assert X.dtype == np.float32
    assert np.array_equal(extractor.transform(np.array([str(path) for path in paths])[::-1]), X[::-1])


def test_paths_pictures_and_arrays_are_the_same(paths, extractor):
    files = extractor.transform(paths[:3])
    arrays = [decode_image(path) for path in paths[:3]]
    np.testing.assert_allclose(extractor.transform(arrays), files, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(extractor.transform(np.stack(arrays)), files, rtol=1e-4, atol=1e-6)
    mixed = [paths[0], Image.open(paths[1]), arrays[2]]
    np.testing.assert_allclose(extractor.transform(mixed), files, rtol=1e-4, atol=1e-6)
    grey = arrays[0][..., 0]
    np.testing.assert_array_equal(extractor.transform([grey]), extractor.transform([np.stack([grey] * 3, axis=-1)]))


def test_pixels_are_no_file():
    tall, wide = np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    assert pixels_digest(tall) != pixels_digest(wide)


def test_it_works_before_fit_and_after_pickling(paths, extractor):
    X = extractor.transform(paths[:4])
    fitted = pickle.loads(pickle.dumps(extractor.fit(paths)))
    assert np.array_equal(fitted.transform(paths[:4]), X)
    assert list(fitted.get_feature_names_out()[:2]) == ["featureextractor0", "featureextractor1"]
    assert (fitted.n_features_out_, fitted.layer_, fitted.image_size_) == (256, "pooled", (32, 32))
    assert len(pickle.dumps(extractor)) < 5000  # names and numbers, not the network


def test_unreadable_pictures(paths, extractor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    X = [paths[0], bad, tmp_path / "missing.jpg"]
    with pytest.raises(DataError, match=r"2 of 3 pictures cannot be read: .*bad\.jpg.*missing\.jpg"):
        extractor.transform(X)
    with pytest.warns(TransferkitWarning, match="their rows are NaN"):
        rows = extractor.set_params(on_error="nan").transform(X)
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1:]).all()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("one.jpg", r"X is one str, expected a list of pictures - pass \[X\]"),
        ([], r"0 samples"),
        (np.zeros((4, 3)), "X is an array of float64 of shape"),
        ([np.zeros((4, 4, 3), np.float32)], r"X\[0\] is an array of float32 .*expected a path, a Pillow image"),
        ([1, None], r"X\[0\] is 1 \(int\), X\[1\] is None"),
        (np.zeros((4, 4), np.uint8), r"pass \[X\] for one picture"),
    ],
)
def test_what_is_no_picture(extractor, X, message):
    with pytest.raises(InputError, match=message):
        extractor.fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layer": "all"}, "layer is 'all', expected one layer"),
        ({"on_error": "skip"}, "on_error is 'skip'"),
        ({"pool": "mean"}, "pool is 'mean'"),
        ({"image_size": 0}, "image-size is 0"),
        ({"precision": "16"}, "precision is '16'"),
    ],
)
def test_arguments_are_checked_in_fit(paths, extractor, params, message):
    wrong = clone(extractor).set_params(**params)  # a constructor only stores
    with pytest.raises(ConfigError, match=message):
        wrong.fit(paths)


# ---- pipelines --------------------------------------------------------------------------------------------------


def test_a_search_runs_the_network_once_per_picture(paths, labels, extractor, seen):
    pipeline = make_pipeline(extractor, StandardScaler(), SVC())
    search = GridSearchCV(pipeline, {"svc__C": [0.1, 1, 10]}, cv=3).fit(paths, labels)
    assert sum(seen) == len(paths)
    assert search.best_score_ > 0.4
    cross_val_score(pipeline, paths, labels, cv=3)
    assert sum(seen) == len(paths)
    GridSearchCV(pipeline, {"featureextractor__layer": ["stage2", "pooled"]}, cv=3).fit(paths, labels)
    assert sum(seen) == 2 * len(paths)


@pytest.mark.slow
def test_processes_share_the_store(paths, labels, extractor):
    pipeline = make_pipeline(extractor, StandardScaler(), SVC())
    alone = cross_val_score(pipeline, paths, labels, cv=3)
    assert np.array_equal(cross_val_score(pipeline, paths, labels, cv=3, n_jobs=2), alone)


# ---- the probe --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", ["logistic", "knn", "sklearn.svm.SVC"])
def test_image_probe(folder, paths, labels, tmp_path, classifier):
    probe = ImageProbe(image_size=32, cache=tmp_path / "store", classifier=classifier, folds=3)
    assert clone(probe).get_params() == probe.get_params()
    probe.fit(paths, labels)
    assert list(probe.classes_) == ["circle", "square", "stripes"]
    val = sorted((folder / "val").glob("*/*.png"))
    probs = probe.predict_proba(val)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert probe.score(val, [path.parent.name for path in val]) > 0.4
    if classifier != "sklearn.svm.SVC":
        assert list(probe.predict(val)) == list(probe.classes_[probs.argmax(axis=1)])


def test_a_probe_that_is_not_fitted(paths):
    with pytest.raises(NotFittedError, match=r"this ImageProbe is not fitted yet - call fit\(X, y\) first"):
        ImageProbe().predict(paths)


@pytest.mark.parametrize(
    ("y", "message"),
    [(None, "y is None"), (["a"], "y has 1 class|expected one for each"), (["a"] * 24, "y has 1 class")],
)
def test_labels_that_do_not_fit(paths, tmp_path, y, message):
    with pytest.raises(InputError, match=message):
        ImageProbe(image_size=32, cache=tmp_path / "store").fit(paths, y)


# ---- scikit-learn's own checks ----------------------------------------------------------------------------------

# All of these need no data, or data of a kind that is refused anyway.
SENSIBLE = {
    "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types", "check_estimator_repr",
    "check_no_attributes_set_in_init", "check_do_not_raise_errors_in_init_or_set_params", "check_mixin_order",
    "check_parameters_default_constructible", "check_get_params_invariance", "check_set_params", "check_fit1d",
    "check_estimator_sparse_tag",
}  # fmt: skip


def numeric(kind):
    """The estimator with a tag that lets scikit-learn try its checks for matrices, which it skips for pictures."""

    class Numeric(kind):
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    return Numeric


@pytest.mark.parametrize("kind", [FeatureExtractor, ImageProbe])
@pytest.mark.filterwarnings("ignore")
def test_estimator_checks(kind, tmp_path):
    """What needs no numbers passes; everything else fails for one reason: it fits on numbers, which are no pictures."""
    results = check_estimator(numeric(kind)(image_size=32, cache=str(tmp_path)), on_fail=None, on_skip=None)
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    assert passed >= SENSIBLE
    for result in results:
        if result["status"] == "failed":
            causes, error = [], result["exception"]
            while error is not None:
                causes.append(error)
                error = error.__cause__ or error.__context__
            assert any(
                isinstance(cause, InputError) and "expected a list of pictures" in str(cause) for cause in causes
            ), result["check_name"]


def test_the_package_names_them():
    import transferkit as tk

    assert (tk.FeatureExtractor, tk.ImageProbe) == (FeatureExtractor, ImageProbe)
