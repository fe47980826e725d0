"""The loggers of a run: Lightning's own do the work, and none that fails costs the run. Read `run_loggers` first."""
