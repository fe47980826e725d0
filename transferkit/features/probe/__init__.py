"""Classifiers on features: the regularisation path, kNN, scikit-learn by name. Read `probe` first."""
