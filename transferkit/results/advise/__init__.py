"""`advise`: which backbone suits a data set, and how to tune it, before anything is trained. Read `advise` first."""
