"""Retrieval figures: by hand, and beside scikit-learn's neighbours and its average precision."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from transferkit.results.similar.nearest import Nearest, directions
from transferkit.results.similar.retrieval import Retrieval, retrieval_figures


def retrieval(right, relevant):
    return Retrieval(np.array(right, dtype=bool), relevant)


def values(found):
    figures, left_out = retrieval_figures(found)
    return {figure.key: figure.value for figure in figures}, left_out


def test_by_hand():
    # R = 3, of the three nearest the first and third are right: (1/1 + 2/3) / 3, not divided by the two that are right
    one = retrieval([1, 0, 1, 1, 1], 3)  # KevinMusgrave/pytorch-metric-learning issue 331
    other = retrieval([0, 0, 0, 0, 1], 1)
    assert one.average_precision == pytest.approx((1 + 2 / 3) / 3) and other.average_precision == 0
    found, left_out = values([one, other])
    assert found == {"recall_1": 0.5, "recall_5": 1.0, "map_r": pytest.approx(one.average_precision / 2)}
    assert left_out == 0


def test_pictures_whose_class_the_gallery_has_not_are_left_out():
    """And never divide by 0: KevinMusgrave/pytorch-metric-learning issues 74 and 397."""
    assert values([retrieval([1, 1], 2), retrieval([0, 0], 0)]) == (
        {"recall_1": 1.0, "recall_5": 1.0, "map_r": 1.0}, 1)  # fmt: skip
    assert values([retrieval([0, 0], 0)]) == ({"recall_1": None, "recall_5": None, "map_r": None}, 1)
    assert values([]) == ({"recall_1": None, "recall_5": None, "map_r": None}, 0)


def test_beside_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(5, size=200)
    rows = directions((generator.normal(size=(200, 8)) + 0.7 * labels[:, None]).astype(np.float32))
    queries, searched = np.arange(60), np.arange(60, 200)
    counts = np.bincount(labels[searched], minlength=5)
    nearest = Nearest(rows[queries], int(counts.max()))
    nearest.see(np.arange(len(searched)), rows[searched])
    found = [
        Retrieval(labels[searched][nearest.of(at)[0]] == labels[query], int(counts[labels[query]]))
        for at, query in enumerate(queries)
    ]
    theirs = NearestNeighbors(metric="cosine", algorithm="brute", n_neighbors=int(counts.max())).fit(rows[searched])
    order = theirs.kneighbors(rows[queries], return_distance=False)
    right = labels[searched][order] == labels[queries][:, None]
    relevant = counts[labels[queries]]
    expected = [
        # of the R nearest; scikit-learn divides by those that are right among them, MAP@R by R
        average_precision_score(row[:r], -np.arange(r)) * row[:r].sum() / r if row[:r].any() else 0.0
        for row, r in zip(right, relevant, strict=True)
    ]
    ours, _ = values(found)
    assert ours["map_r"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert ours["recall_1"] == right[:, 0].mean() and ours["recall_5"] == right[:, :5].any(axis=1).mean()
    for figure in retrieval_figures(found)[0]:
        assert figure.ci[0] < figure.value < figure.ci[1]
