"""Figures about predictions, each with what it means and its interval. Read `figure` first, then `classification`."""
