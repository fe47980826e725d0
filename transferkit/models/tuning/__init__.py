"""What of a model learns, and by what: selectors, the layout they select from, adapters. Read `selectors` first."""
