"""Decoded pictures that are decoded once: in shared memory, and on disk what does not fit. Read `store` first."""
