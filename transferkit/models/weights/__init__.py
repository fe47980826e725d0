"""Where weights come from, how they are fetched, and how strictly they are loaded. Read `loading` first."""
