# Deep features as a step of a scikit-learn pipeline: paths go in, labels come out; everything offline.
#
#   python recipes/sklearn_pipeline.py
#
# The second fit finds its features in the store: the network runs once per picture, whatever comes after it.
#
# Measured: 2026-11-24 on 2 cores of an AMD EPYC without AMX, torch 2.15 (OMP_WAIT_POLICY=PASSIVE, as there was
# other work): 270 pictures to fit on, 90 to score on, 256 features; first fit 0.9 s, second 0.03 s; accuracy 87.8 %.
"""A support vector machine on the features of the bundled backbone."""

import time
from pathlib import Path

from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import transferkit as tk
from transferkit.data.sample import sample_folder


def main(folder: Path | None = None) -> dict[str, float]:
    """Fit twice on three quarters of a folder with a subfolder per class, and score on the rest."""
    paths = sorted((folder or sample_folder()).glob("*/*.jpg"))
    labels = [path.parent.name for path in paths]
    train, test, y_train, y_test = train_test_split(paths, labels, stratify=labels, random_state=0)

    pipeline = make_pipeline(tk.FeatureExtractor("transferkit/mini"), StandardScaler(), SVC())
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        pipeline.fit(train, y_train)
        seconds.append(time.perf_counter() - started)
    accuracy = pipeline.score(test, y_test)

    width = len(pipeline[:1].get_feature_names_out())
    print(f"{len(train)} pictures to fit on, {len(test)} to score on, {width} features of each")
    print(f"first fit {seconds[0]:.2f} s, second fit {seconds[1]:.2f} s")
    print(f"accuracy {accuracy:.1%}")
    return {"accuracy": accuracy, "features": width, "first_s": seconds[0], "second_s": seconds[1]}


if __name__ == "__main__":
    main()
