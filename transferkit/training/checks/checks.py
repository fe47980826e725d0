"""`--overfit-batches`: the first check of every training, said in words."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from transferkit.core.errors import TrainingError
from transferkit.options.training import FinetuneConfig
from transferkit.show.progress import counting_bar
from transferkit.training.checks.overfit import overfit
from transferkit.training.plan.options import USUAL_LR
from transferkit.training.setup import Training

__all__ = ["check_overfit"]

EPOCHS = 50
"""Passes over the few batches, at least; `--epochs` can ask for more."""


def check_overfit(training: Training[FinetuneConfig]) -> dict[str, Any]:
    """Learn a few batches by heart, and say what came of it.

    Args:
        training: With ``overfit_batches``; its module is used up.

    Returns:
        Plain values: ``reached``, ``epochs``, ``train_acc``, ``eval_acc``.

    Raises:
        TrainingError: They could not be learnt; the message says what to look at.
    """
    config = training.config
    assert config.overfit_batches is not None
    lr = USUAL_LR if isinstance(config.lr, str) else config.lr
    with counting_bar(training.console, "overfitting") as progress:
        result = overfit(
            training.module, training.data, batches=config.overfit_batches, epochs=max(EPOCHS, config.epochs), lr=lr,
            progress=progress,
        )  # fmt: skip
    if not result.reached:
        raise TrainingError(
            f"{config.overfit_batches} batch(es) could not be learnt by heart in {result.epochs} passes: accuracy "
            f"{result.train_acc:.1%} in training, {result.eval_acc:.1%} in evaluation - {'; '.join(result.advice)}"
        )
    if not config.quiet:
        done = f"learnt {config.overfit_batches} batch(es) by heart in {result.epochs} passes at LR {lr:g}"
        Console(highlight=False).print(f"{done}: 100 % in training and in evaluation", soft_wrap=True)
        for sentence in result.advice:
            Console(highlight=False).print(f"but {sentence}", soft_wrap=True)
    return {"reached": True, "epochs": result.epochs, "train_acc": result.train_acc, "eval_acc": result.eval_acc}
