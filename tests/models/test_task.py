"""What classification gives a model: its figures while training agree with scikit-learn's, its losses with torch's."""

import copy
import pickle

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.classification import ClassHeads, ClassObjective
from transferkit.models.figures.classification import classification_metrics
from transferkit.models.parts import LossOptions
from transferkit.models.task import Task, is_registered, list_tasks, register_task, task_named
from transferkit.results.predict.record import ClassOutput

CLASSES = 7


@pytest.fixture
def answers():
    """Logits of 60 pictures in three batches; the last class has no picture."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, CLASSES - 1, (60,), generator=generator)
    logits = torch.randn(60, CLASSES, generator=generator) + 2 * functional.one_hot(targets, CLASSES)
    return logits, targets


def watched(names, logits, targets):
    metrics = ClassObjective().metrics(names, CLASSES)
    for start in range(0, len(targets), 20):
        for metric in metrics.values():
            metric.update(ClassOutput().activate(logits[start : start + 20]), targets[start : start + 20])
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_watched_figures_are_scikit_learns(answers):
    logits, targets = answers
    probs = logits.softmax(dim=1).double().numpy()
    figures = watched(["acc", "acc_top5", "balanced_acc"], logits, targets)
    assert figures["acc"] == pytest.approx(accuracy_score(targets, logits.argmax(dim=1)))
    assert figures["acc_top5"] == pytest.approx(top_k_accuracy_score(targets, probs, k=5, labels=range(CLASSES)))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(targets, logits.argmax(dim=1))
    assert figures["balanced_acc"] == pytest.approx(expected)


def test_every_monitor_is_the_figure_of_the_same_name(answers):
    logits, targets = answers
    objective = ClassObjective()
    probs = logits.softmax(dim=1)
    final = classification_metrics(probs, targets, [str(number) for number in range(CLASSES)], resamples=1)
    names = [name for name in objective.monitors if name not in ("loss", "f1_macro")]
    figures = watched(names, logits, targets)
    assert figures == pytest.approx({name: final[name] for name in names}, abs=1e-6)
    assert set(objective.watched) <= set(objective.monitors)


def test_an_unknown_figure_is_refused():
    with pytest.raises(ConfigError, match="no figure 'accuracy' to watch"):
        ClassObjective().metrics(["accuracy"], CLASSES)


def test_losses(answers):
    logits, targets = answers
    objective = ClassObjective()
    items = objective.item_losses(logits, targets)
    assert float(items.double().mean()) == pytest.approx(log_loss(targets, logits.double().softmax(1), labels=range(7)))
    assert torch.equal(
        objective.loss(LossOptions(), CLASSES)(logits, targets), functional.cross_entropy(logits, targets)
    )
    smooth = objective.loss(LossOptions(label_smoothing=0.1), CLASSES)(logits, targets)
    assert torch.equal(smooth, functional.cross_entropy(logits, targets, label_smoothing=0.1))


def test_the_running_accuracy_takes_the_larger_part_of_a_mixed_picture(answers):
    logits, targets = answers
    right = int((logits.argmax(dim=1) == targets).sum())
    mixed = 0.7 * functional.one_hot(targets, CLASSES) + 0.3 * functional.one_hot((targets + 1) % CLASSES, CLASSES)
    assert ClassObjective().running_sums(logits, targets).tolist() == [right]
    assert ClassObjective().running_sums(logits, mixed).tolist() == [right]


def test_heads():
    assert ClassHeads().width(TargetSpec(("a", "b", "c"))) == 3
    assert ClassHeads().problems(2) == []
    assert ClassHeads().problems(1) == ["num_classes is 1, expected at least 2"]


def test_tasks_by_name():
    task = task_named("classification")
    assert isinstance(task, Task)
    assert task.name in list_tasks() and is_registered(task.name)
    assert not is_registered("clasification")
    with pytest.raises(ConfigError, match="unknown task 'clasification'. Did you mean 'classification'?"):
        task_named("clasification")
    with pytest.raises(ConfigError, match="exists already"):
        register_task(task)


def test_a_task_is_copied_and_sent_with_its_model():
    task = task_named("classification")
    assert copy.deepcopy(task) == task == pickle.loads(pickle.dumps(task))
