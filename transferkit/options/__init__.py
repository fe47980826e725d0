"""The options of every verb, once: flags, recipe keys and keyword arguments. Read `fields` first, then `training`."""
