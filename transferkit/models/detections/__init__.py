"""Detections matched to objects, ranked under weights, and judged one by one. Read `matching` first, then `counts`."""
