"""The fast forward pass of a frozen backbone. Read `engine` first."""
