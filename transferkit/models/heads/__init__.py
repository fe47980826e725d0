"""Heads: what each is given of a backbone, how it is built or fitted at once. Read `registry` first."""
