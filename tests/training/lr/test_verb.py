"""`lr-find`: what it writes and says, and phases that have no LR to find."""

import csv

import pytest
from shapes import SMALL_RUN


def test_the_curve_is_written_and_the_phase_is_named(folder, tmp_path, command):
    words = ["--data", folder, *SMALL_RUN, "--batch-size", "auto", "--phases", "finetune", "--steps", "30"]
    status, out, err = command("lr-find", *words, "--lr-max", "1e-6", "--out", tmp_path / "lr")
    assert (status, "\nphase    finetune: 30 steps, LR 1e-07 to 1e-06" in out) == (5, True)  # nothing falls
    assert "no LR can be suggested for phase 'finetune'" in err
    with (tmp_path / "lr" / "lr.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 30
    assert (tmp_path / "lr" / "lr.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phase", "finetun"], "no phase 'finetun' that is trained by sgd. Did you mean 'finetune'?"),
        (["--phases", "probe"], "no phase is trained by sgd, so there is no LR to find"),
    ],
)
def test_a_phase_without_an_lr(folder, tmp_path, command, words, message):
    status, _, err = command("lr-find", "--data", folder, *SMALL_RUN, *words, "--out", tmp_path / "lr")
    assert status == 2
    assert message in err
    assert not (tmp_path / "lr").exists()
