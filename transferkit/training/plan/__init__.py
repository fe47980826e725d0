"""Phases, and the plan that follows from them before a step is taken. Read `phases` first."""
