"""The ground floor: errors, records, files, CSV, text and locks; the standard library and numpy only.

Read `errors` first.
"""
