"""The kinds of answer as a model sees them: heads, losses, figures that are watched. Read `classification` first."""
