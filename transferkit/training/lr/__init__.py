"""The learning-rate range test and what follows from it. Read `finder` first."""
