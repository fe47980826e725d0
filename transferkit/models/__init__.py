"""Backbones, heads, losses, freezing, and the LightningModule that joins them. Read `module` first."""
