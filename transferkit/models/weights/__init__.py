"""Weights: their sources, how they are fetched, and how strictly they are loaded. Read `loading` first."""
