"""Backbones, heads, freezing and the LightningModule that joins them."""
