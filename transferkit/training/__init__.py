"""Schedules, phases, optimizers, callbacks and the fine-tuning story."""
