"""A model on labelled pictures: figures, comparison, calibration. Read `evaluate` first."""
