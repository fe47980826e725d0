"""From logits to probabilities and sets that can be trusted. Read `calibration` first."""
