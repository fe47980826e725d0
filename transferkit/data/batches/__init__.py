"""From the index to batches: augmentation, order, decoding processes. Read `datamodule` first."""
