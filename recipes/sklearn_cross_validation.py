# Classifiers compared on the same folds, in two processes that share one store; everything offline.
#
#   python recipes/sklearn_cross_validation.py
#
# `ImageProbe` is a classifier of pictures in one piece: it chooses its C inside the rows of each fit. The others are
# pipelines. Scores of one fold belong together, so the difference to the probe is told with its own spread.
#
# Measured: 2026-11-24 on 2 cores of an AMD EPYC without AMX, torch 2.15: logistic probe 87.2 %, SVM 87.1 % (-0.1
# points, spread 2.6), 5 neighbours 81.4 % (-5.8 points, spread 3.6): the SVM is no better here. Most of the time goes
# into starting the two processes.
"""Is an SVM better than a logistic probe here? Repeated, stratified cross-validation of three estimators."""

from pathlib import Path
from typing import Any

from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC

import transferkit as tk
from transferkit.data.sample import sample_folder


def main(folder: Path | None = None, n_jobs: int = 2) -> dict[str, Any]:
    """Return the accuracies by estimator, a fold each, on a folder with a subfolder per class."""
    paths = sorted((folder or sample_folder()).glob("*/*.jpg"))
    labels = [path.parent.name for path in paths]

    estimators = {
        "logistic probe": tk.ImageProbe("transferkit/mini"),
        "SVM": make_pipeline(tk.FeatureExtractor("transferkit/mini"), StandardScaler(), SVC(C=10)),
        "5 neighbours": make_pipeline(tk.FeatureExtractor("transferkit/mini"), Normalizer(), KNeighborsClassifier(5)),
    }
    folds = RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=0)
    scores = {}
    for name, estimator in estimators.items():
        scores[name] = cross_val_score(estimator, paths, labels, cv=folds, n_jobs=n_jobs)
        difference = scores[name] - scores["logistic probe"]
        print(
            f"{name:>14}: accuracy {scores[name].mean():.1%} over {len(difference)} folds; "
            f"to the probe {100 * difference.mean():+.1f} points (spread over folds {100 * difference.std(ddof=1):.1f})"
        )
    return scores


if __name__ == "__main__":
    main()
