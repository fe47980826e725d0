"""The command line: the parser, its messages, and one function per verb. Read `main` first."""

from transferkit.cli.main import main

__all__ = ["main"]
