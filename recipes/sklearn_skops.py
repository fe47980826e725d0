# A fitted pipeline saved without pickle and loaded again, with the types it may hold named; everything offline.
#
#   pip install skops
#   python recipes/sklearn_skops.py
#
# A pickle runs code when it is loaded. A skops file names its types, and loads those only that are trusted by name. It
# holds the classifier's numbers and the backbone's name and digest, not the network: that comes from where it came from
# at first, and other weights than those of `fit` are refused.
#
# Measured: 2026-11-24 on 2 cores of an AMD EPYC without AMX, torch 2.15, skops 0.16: a file of 733 kB, one type to
# trust by name, predictions for all 360 pictures equal.
"""Save with skops, look at the types, load, and compare."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import transferkit as tk
from transferkit.data.sample import sample_folder

TRUSTED = ["transferkit.features.sklearn.FeatureExtractor"]  # all that is not scikit-learn's or numpy's own


def main(folder: Path | None = None) -> dict[str, Any]:
    """Fit on a folder with a subfolder per class, and send the pipeline through a file."""
    paths = sorted((folder or sample_folder()).glob("*/*.jpg"))
    labels = [path.parent.name for path in paths]
    pipeline = make_pipeline(tk.FeatureExtractor("transferkit/mini"), StandardScaler(), SVC()).fit(paths, labels)

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "pipeline.skops"
        skops.io.dump(pipeline, file)
        size = file.stat().st_size
        untrusted = skops.io.get_untrusted_types(file=file)
        if sorted(untrusted) != TRUSTED:
            raise SystemExit(f"the file asks for {untrusted}, expected {TRUSTED} - do not load it")
        loaded = skops.io.load(file, trusted=TRUSTED)

    equal = bool(np.array_equal(loaded.predict(paths), pipeline.predict(paths)))
    print(f"a file of {size / 1e3:.0f} kB; types to trust by name: {', '.join(untrusted)}")
    print(f"predictions for {len(paths)} pictures equal after loading: {equal}")
    return {"equal": equal, "untrusted": untrusted, "bytes": size}


if __name__ == "__main__":
    main()
