"""The things that a person sees: progress bars, words for numbers, charts in files and pages. Read `progress` first."""
