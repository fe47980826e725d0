"""The run directory, written and read in one place. Read `directory` first."""
