"""Pictures: folder to index, bytes to pixels, pixels to batches."""
