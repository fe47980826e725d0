"""Finding the pictures of a folder or manifest, before any file is opened. Read `scan` first."""
