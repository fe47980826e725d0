"""Detections as results: what is told of them, judged, listed for other programs, and drawn. Read `judged` first."""
