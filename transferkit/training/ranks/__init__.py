"""Several processes as if they were one. Read `parallel` first."""
