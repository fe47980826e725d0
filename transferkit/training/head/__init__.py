"""The head on cached features: solved, or trained by steps. Read `solve` first."""
