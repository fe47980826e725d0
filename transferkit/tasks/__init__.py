"""The kinds of answer, a file each, which only names its parts. Read `classification` first."""
