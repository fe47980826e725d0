"""The things that a person sees: progress bars, words for numbers, charts as files and in pages. Read `progress` first."""
