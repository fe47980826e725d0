"""The border to scikit-learn: deep features as a transformer, a probe on them as a classifier. Read `extractor` first.

The network lies in the process, not in the estimators: clones share it, and a pickled estimator holds names and numbers
only. Rows come from the feature store, so a grid search or a cross-validation runs the network once per picture.
"""

from transferkit.features.sklearn.extractor import FeatureExtractor
from transferkit.features.sklearn.probe import ImageProbe

__all__ = ["FeatureExtractor", "ImageProbe"]  # by this module: saved estimators name it
