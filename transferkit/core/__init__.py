"""The ground floor: errors, records, files, CSV, text and locks, on the standard library and filelock.

Read `errors` first.
"""
