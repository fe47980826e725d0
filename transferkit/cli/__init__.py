"""The command line: the parser, its messages, and one function per verb. Read `main` first."""
