"""The head on cached features: their rows, the head solved at once, or trained by steps. Read `solve` first."""
