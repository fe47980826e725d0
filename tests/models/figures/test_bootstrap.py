"""The bootstrap against a reference of another library, and drawing whole groups."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from transferkit.models.figures.bootstrap import bootstrap_intervals, drawn_weights
from transferkit.models.figures.classification import classification_metrics


def test_equals_scipys_percentile_intervals():
    values = np.random.default_rng(0).exponential(1.0, 300)
    ours = bootstrap_intervals(lambda drawn: [drawn @ values / 300, drawn @ values**2 / 300], 300, resamples=4000)
    for (low, high), sample in zip(ours, (values, values**2), strict=True):
        theirs = bootstrap((sample,), np.mean, n_resamples=4000, method="percentile", random_state=1)
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
        assert high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_every_draw_has_as_many_units_and_the_seed_decides():
    totals = []

    def statistics(drawn):
        totals.append(int(drawn.sum()))
        return [float(drawn @ np.arange(9))]

    first, same, other = (bootstrap_intervals(statistics, 9, resamples=40, seed=seed) for seed in (1, 1, 2))
    assert totals == [9] * 120
    assert first == same != other


def test_draws_do_not_depend_on_the_size_of_blocks(monkeypatch):
    whole = np.concatenate(list(drawn_weights(9, resamples=40, seed=3)))
    assert whole.shape == (40, 9) and (whole.sum(axis=1) == 9).all()
    assert len(list(drawn_weights(9, resamples=40, seed=3, width=1 << 30))) == 40
    monkeypatch.setattr("transferkit.models.figures.bootstrap.BLOCK", 100)
    blocks = list(drawn_weights(9, resamples=40, seed=3))
    assert [len(block) for block in blocks] == [11, 11, 11, 7]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_intervals_of_classes_are_those_of_scikit_learn_draw_by_draw():
    generator = np.random.default_rng(0)
    true = np.repeat([0, 1, 2, 2], 3)  # of few pictures, so that draws miss classes
    probs = generator.dirichlet((1.0, 1.0, 2.0), 12).astype(np.float32)
    guess = probs.argmax(axis=1)

    def statistics(drawn):
        kept = drawn > 0
        weighted = {"sample_weight": drawn[kept]}
        present = np.unique(true[kept])
        return [
            accuracy_score(true[kept], guess[kept], **weighted),
            log_loss(true[kept], probs[kept], labels=[0, 1, 2], **weighted),
            # Classes that were not drawn have no recall; those that were only guessed do not count.
            np.mean([(guess[true == one] == one) @ drawn[true == one] / drawn[true == one].sum() for one in present]),
            f1_score(true[kept], guess[kept], labels=present, average="macro", zero_division=0, **weighted),
        ]

    ours = classification_metrics(
        torch.from_numpy(probs), torch.from_numpy(true), ["a", "b", "c"], seed=5, resamples=60
    )
    theirs = bootstrap_intervals(statistics, 12, seed=5, resamples=60)
    for name, interval in zip(("acc", "loss", "balanced_acc", "f1_macro"), theirs, strict=True):
        assert ours[f"{name}_ci"] == pytest.approx(list(interval), rel=1e-5), name
    assert ours["balanced_acc"] == pytest.approx(balanced_accuracy_score(true, guess))
