"""The options of every verb, once: flags, recipe keys and keyword arguments. Read `fields` first, then `training`.

Plain data and its checks. Nothing heavy is imported, so that `--help` and mistakes are answered at once.
"""
