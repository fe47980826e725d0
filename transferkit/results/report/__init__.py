"""The page about one run or several. Read `report` first."""
