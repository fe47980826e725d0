"""Tests of a training itself: overfitting a batch, gradients, resume. Read `overfit` first."""
