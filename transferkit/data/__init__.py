"""From a folder of pictures to batches. `sample` is the bundled set.

Rooms: `scan`, `images`, `masks`, `pixels`, `index`, `objects`, `augment`, `batches`.
"""
