"""Pictures unlike all others, against scikit-learn's neighbours and SciPy's deviation."""

import numpy as np
import pytest
from scipy.stats import median_abs_deviation
from sklearn.neighbors import NearestNeighbors

from transferkit.data.images.sketch import Sketch
from transferkit.results.audit import outliers as module
from transferkit.results.audit.outliers import looks, outliers


def cloud(count=300, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def reference(rows):
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    logs = np.log(NearestNeighbors(n_neighbors=21, algorithm="brute").fit(rows).kneighbors(rows)[0][:, 20])
    return (logs - np.median(logs)) / median_abs_deviation(logs, scale="normal")


def test_deviations_are_those_of_the_twentieth_neighbour():
    rows, other = cloud(), 5 + 3 * cloud(width=3, seed=1)
    np.testing.assert_allclose(outliers([rows])[1], reference(rows), atol=2e-3)
    np.testing.assert_allclose(outliers([rows, other])[1], (reference(rows) + reference(other)) / 2, atol=2e-3)


def test_far_pictures_come_first_even_if_a_few_are_alike():
    rows = cloud()
    rows[10] += 30
    rows[[50, 51, 52]] += 12  # three of a kind do not vouch for each other
    positions, deviations = outliers([rows])
    assert positions.tolist() == [10, *sorted([50, 51, 52], key=lambda at: -deviations[at])]
    assert outliers([cloud()])[0].size == 0


def test_few_pictures_and_equal_pictures_are_no_measure():
    rows = cloud(49)
    rows[0] += 100
    assert outliers([rows])[0].size == 0
    same = np.ones((100, 4), dtype=np.float32)
    same[0] = 7
    assert outliers([same])[0].size == 0  # all but one are one picture: its distance is no measure
    assert np.isfinite(outliers([same])[1]).all()


def test_among_many_a_sample_is_looked_at(monkeypatch):
    rows = cloud(400)
    rows[7] += 30
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    monkeypatch.setattr(module, "_BLOCK", 64)
    positions, deviations = outliers([rows], seed=3)
    assert positions.tolist() == [7]
    assert (deviations == outliers([rows], seed=3)[1]).all()


def sketch(cells):
    return Sketch(100, 100, 1, np.asarray(cells, dtype=np.uint8).tobytes())


def test_looks_tell_what_is_to_be_seen():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32))
    stripes = np.tile([[0], [255]], (16, 32))
    rows = looks([sketch(np.full((32, 32), 51)), sketch(noise), sketch(stripes), sketch(stripes.T)])
    assert rows.shape == (4, 14) and np.isfinite(rows).all()
    assert rows[0, :2] == pytest.approx([0.2, 0.0], abs=1e-6)  # brightness and contrast
    assert rows[2, 3] > 5 and rows[3, 3] < -5  # the direction of the finest detail
    assert rows[1, 10] > rows[0, 10] == pytest.approx(0, abs=1e-6)  # entropy of the levels
