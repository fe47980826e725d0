"""Predictions over HTTP. Read `serve` first."""
