"""Exact search in blocks, beside scikit-learn's brute force and by hand."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from transferkit.results.similar.nearest import Nearest, directions


def found(queries, rows, k, block, left_out=None):
    nearest = Nearest(queries, k, left_out)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        nearest.see(np.arange(start, start + len(part)), part)
    return [nearest.of(query) for query in range(len(queries))]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_search_in_blocks(block):
    # Cosines with (1, 0): 0, 1, 0.6, 1, -1, 0.6, 0.6
    rows = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0], [-1, 0], [0.6, -0.8], [0.6, 0.8]], dtype=np.float32)
    query = np.array([[1, 0], [1, 0]], dtype=np.float32)
    (first, cosines), (second, _) = found(query, rows, 3, block, [[], [1, 2]])
    assert first.tolist() == [1, 3, 2]  # of equals the first
    assert second.tolist() == [3, 5, 6]
    assert cosines.tolist() == pytest.approx([1.0, 1.0, 0.6])
    everything = found(query, rows, 10, block, [[], [4]])
    assert everything[0][0].tolist() == [1, 3, 2, 5, 6, 0, 4]  # fewer than were asked for, and none made up
    assert everything[1][0].tolist() == [1, 3, 2, 5, 6, 0]


@pytest.mark.parametrize("block", [64, 1000])
def test_as_scikit_learn_finds(block):
    generator = np.random.default_rng(0)
    rows, queries = (generator.normal(size=(count, 24)).astype(np.float32) for count in (700, 150))
    theirs = NearestNeighbors(metric="cosine", algorithm="brute").fit(rows.astype(np.float64))
    distances, places = theirs.kneighbors(queries.astype(np.float64), 12)
    for query, (ours, cosines) in enumerate(found(directions(queries), directions(rows), 12, block)):
        assert ours.tolist() == places[query].tolist()
        np.testing.assert_allclose(cosines, 1 - distances[query], atol=1e-6)


def test_no_cosine_beyond_one():  # facebookresearch/faiss issue 915
    rows = np.random.default_rng(1).normal(size=(2000, 33)).astype(np.float32)
    rows = directions(rows)
    assert (rows * rows).sum(axis=1).max() > 1  # or this shows nothing
    assert max(float(cosines[0]) for _, cosines in found(rows[:500], rows, 1, 300)) <= 1.0


def test_directions_of_odd_rows():
    rows = np.array([[0, 0], [3, 4], [3e30, 4e30], [3e-30, 4e-30], [-5, 0]], dtype=np.float32)
    expected = [[0, 0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [-1, 0]]  # nothing like anything, and no lengths lost
    np.testing.assert_allclose(directions(rows), expected, rtol=1e-6)
    assert directions(np.empty((0, 3), np.float32)).shape == (0, 3)
