"""A model in other formats, verified before the file appears. Read `export` first."""
