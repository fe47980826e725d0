"""The loss and the LR of every step are those that were recorded, for each way of fine-tuning."""

import copy
import json

import pytest
from golden.record import HERE, RUNS, draw, run

TOLERANCE, SOLVED = 1e-4, 1e-3
"""Relative above 1, for losses on another machine or release; a solved head is as exact as its solver stops."""


def recorded(name):
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def differences(curves, golden, tolerance=TOLERANCE):
    """Return what differs: in the last bit where both come from the same machine and releases."""
    exact = curves["recorded_on"] == golden["recorded_on"]
    series = {"loss": (curves["loss"], golden["loss"], tolerance)}
    for group in {**curves["lr"], **golden["lr"]}:
        series[f"LR of {group}"] = (curves["lr"].get(group, []), golden["lr"].get(group, []), 1e-12)
    problems = []
    for name, (values, expected, most) in series.items():
        if len(values) != len(expected):
            problems.append(f"{name}: {len(values)} steps, expected {len(expected)}")
        for step, (value, other) in enumerate(zip(values, expected, strict=False)):
            if not abs(value - other) <= (0 if exact else most * max(1, abs(other))):
                problems.append(f"{name} from step {step}: {value!r}, expected {other!r}")
                break
    return problems


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("golden") / "shapes")


@pytest.mark.parametrize("name", RUNS)
def test_curves_are_those_recorded(name, shapes, tmp_path):
    """Where this fails on purpose, record the curves anew and say so in the changelog."""
    tolerance = SOLVED if name == "solved" else TOLERANCE
    assert differences(run(name, shapes, tmp_path), recorded(name), tolerance) == []


@pytest.mark.parametrize(
    ("step", "factor", "same", "message"),
    [
        (3, 1 + 1e-7, True, "loss from step 3"),
        (3, 1 + 1e-7, False, None),
        (0, 1.001, False, "loss from step 0"),
        (2, float("nan"), True, "loss from step 2"),
    ],
)
def test_the_comparison_of_losses_can_fail(step, factor, same, message):
    golden = recorded("probe")
    curves = copy.deepcopy(golden)
    curves["loss"][step] *= factor
    if not same:
        curves["recorded_on"]["torch"] = "0.1"
    problems = differences(curves, golden)
    assert [problem.split(":")[0] for problem in problems] == ([message] if message else [])


def test_the_comparison_of_lrs_and_lengths_can_fail():
    golden = recorded("gradual")
    curves = copy.deepcopy(golden)
    curves["lr"]["head"][1] *= 1 + 1e-6
    curves["loss"].pop()
    del curves["lr"]["stem"]
    assert [problem.split(":")[0] for problem in differences(curves, golden)] == [
        "loss",
        "LR of head from step 1",
        "LR of stem",
    ]
