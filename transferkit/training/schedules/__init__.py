"""Learning rates as pure functions of the step. Read `base` first."""
