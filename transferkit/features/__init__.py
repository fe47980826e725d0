"""The feature store and what stands on it: extract once, keep, probe in seconds."""
