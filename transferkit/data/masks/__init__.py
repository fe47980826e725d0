"""Answers on pixels: what mask files say, and what is known of the places of a picture. Read `coding` first."""
