"""From the bytes of a file to pixels of the size needed. Read `decode` first."""
