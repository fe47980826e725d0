"""From pictures to a table of features, through the store. Read `extract` first."""
