"""What can be added to a training: averages, anchors, snapshots, interpolation. Read `ema` first."""
