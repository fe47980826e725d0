"""The checked list of pictures with labels, splits and content hashes. Read `index` first."""
