"""The scikit-learn border: a transformer and a classifier of pictures. Read `transformers` first."""
