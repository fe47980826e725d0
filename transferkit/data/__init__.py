"""From a folder of pictures to batches. `sample` is the bundled set.

Rooms: `scan`, `images`, `pixels`, `index`, `objects`, `augment`, `batches`.
"""
