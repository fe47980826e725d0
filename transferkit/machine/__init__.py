"""The machine: its cores and memory, its device, the precision it computes in, and what was timed on it.

Read `precision.choose_precision` first: the one policy that every verb asks. `cores` and `timings` import no torch;
`random` is the state of the generators that torch, numpy and Python draw from.
"""
