"""From a folder of pictures to batches. Rooms: `scan`, `images`, `index`, `batches`; `sample` is the bundled set."""
