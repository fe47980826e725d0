"""Figures about predictions, with intervals. Read `classification` first."""
