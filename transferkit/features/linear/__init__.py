"""Linear models solved on features, and what fine-tuning makes of them. Read `logistic` first."""
