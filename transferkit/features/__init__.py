"""Penultimate features: computed once, kept on disk, fed to classifiers. Read `extract/extract` first."""
