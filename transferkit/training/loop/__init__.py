"""One fit of Lightning's Trainer, and the callbacks that make it ours. Read `trainer` first."""
