"""From a saved model and pictures to predictions. Read `predictor` first."""
