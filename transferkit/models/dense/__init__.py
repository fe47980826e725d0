"""Answers that lie on pixels: heads on a pyramid, losses, what is watched. Read `kinds` first."""
