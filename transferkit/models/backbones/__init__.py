"""Pretrained networks behind one interface. Read `interface` first, then `registry`."""
