"""What the machine has and how it computes: cores, memory, device, precision, remembered timings.

Read `device` first.
"""
