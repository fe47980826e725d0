"""Search over options, from cheap trials on features to whole runs. Read `search` first."""
