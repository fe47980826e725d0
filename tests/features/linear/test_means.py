"""Class means as heads: against scikit-learn, and held-out figures against leaving each picture out by hand."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.neighbors import NearestCentroid

from transferkit.features.linear.means import fit_means, softened, with_rows
from transferkit.features.linear.softening import START_STD
from transferkit.models.heads.registry import build_head
from transferkit.models.heads.solver import LabelledRows


def rows(count=40, width=6, classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, count)
    return LabelledRows((rng.normal(size=(count, width)) + 2 * np.eye(width)[y] + 3).astype(np.float32), y, classes)


def loaded(head, state):
    head.load_state_dict(dict(state))
    return head.eval()


def test_prototypes_are_scikit_learns_centroids():
    data = rows()
    head = loaded(build_head("prototype", 6, 3), fit_means(build_head("prototype", 6, 3), data).tensors)
    reference = NearestCentroid().fit(data.X, data.y)
    np.testing.assert_allclose(head.weight.detach(), reference.centroids_, rtol=1e-5)
    with torch.no_grad():
        assert (head(torch.from_numpy(data.X)).argmax(1).numpy() == reference.predict(data.X)).all()


@pytest.mark.parametrize("name", ["prototype", "cosine", "arcface"])
def test_figures_of_held_out_pictures_are_those_of_leaving_each_out(name):
    data = rows()
    groups = [f"g{number // 2}" if number < 8 else f"p{number}" for number in range(len(data))]
    data = LabelledRows(data.X, data.y, data.width, groups)
    solution = fit_means(build_head(name, 6, 3), data)
    scale = solution.choice.get("scale", 16.0)
    right, losses = [], {factor: [] for factor in (0.8, 1.0, 1.25)}
    for at in range(len(data)):
        # a picture of the same group and class goes out with it; those of another class hold no share of its mean
        left = [other for other in range(len(data)) if groups[other] != groups[at] or data.y[other] != data.y[at]]
        head = build_head(name, 6, 3)
        head = loaded(head, fit_means(head, data.take(np.array(left))).tensors)
        with torch.no_grad():
            logits = head(torch.from_numpy(data.X[at : at + 1]))[0].double().numpy()
        own = float(head.log_scale.detach().exp() if name == "prototype" else head.scale.detach())
        right.append(logits.argmax() == data.y[at])
        for factor in losses:
            losses[factor].append(-log_softmax(logits / own * scale * factor)[data.y[at]])
    assert solution.choice["cv_acc"] == pytest.approx(np.mean(right))
    if name != "arcface":  # its scale is fixed
        means = {factor: np.mean(values) for factor, values in losses.items()}
        assert means[1.0] < min(means[0.8], means[1.25])


def test_views_weigh_as_the_picture_and_never_judge_each_other():
    data = rows(12)
    twice = LabelledRows(
        np.concatenate([data.X, data.X]), np.concatenate([data.y, data.y]), 3, [str(n) for n in range(12)] * 2,
        np.full(24, 0.5),
    )  # fmt: skip
    one, two = (fit_means(build_head("prototype", 6, 3), part) for part in (data, twice))
    torch.testing.assert_close(one.tensors["weight"], two.tensors["weight"])
    assert one.choice["cv_acc"] == two.choice["cv_acc"]
    assert one.choice["scale"] == pytest.approx(two.choice["scale"], rel=1e-3)


def test_classes_of_one_picture_or_none_are_no_trouble():
    head = build_head("prototype", 2, 3)
    data = LabelledRows(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), np.array([0, 1]), 3)
    solution = fit_means(head, data)
    assert "cv_acc" not in solution.choice  # nothing is left of a class whose one picture is taken out
    assert solution.tensors["weight"][2].equal(head.weight[2].detach())


def test_what_fine_tuning_starts_from_decides_the_same_with_less_confidence():
    data = rows()
    head = build_head("prototype", 6, 3)
    solution = fit_means(head, data)
    with torch.no_grad():
        before = loaded(head, solution.tensors)(torch.from_numpy(data.X))
        after = loaded(head, softened(solution, before.numpy()))(torch.from_numpy(data.X))
    assert (before.argmax(1) == after.argmax(1)).all()
    assert float((after - after.mean(1, keepdim=True)).std(correction=0)) == pytest.approx(START_STD, rel=1e-3)


def test_points_that_a_head_has_can_stay():
    head, data = build_head("cosine", 6, 3), rows()
    joined = with_rows(fit_means(head, data), head, [1]).tensors["weight"]
    assert joined[1].equal(head.weight[1].detach())
    assert not joined[0].equal(head.weight[0].detach())
