"""The things that a person sees: progress bars, words for numbers, plots. Read `progress` first."""
