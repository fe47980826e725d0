"""The command line: one verb, its exit status, and errors in one line."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from transferkit import __version__
from transferkit.cli.parser import build_parser, parse_options
from transferkit.cli.verbs import VERBS
from transferkit.core.errors import ConfigError, StorageError, TransferkitError, TransferkitWarning, did_you_mean
from transferkit.core.text import one_line, shown

__all__ = ["main"]

HELP = f"""\
transferkit {__version__}: transfer learning for images

usage: transferkit VERB [--config FILE] [flags]

verbs:
{chr(10).join(f"  {verb.name:<11}{verb.help}" for verb in VERBS.values())}

  transferkit VERB --help            every flag, with defaults and units
  transferkit VERB --print_config    the options as a recipe for --config

Start here: transferkit finetune --data sample
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    Args:
        argv: The words after the program's name; those of the process when ``None``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to end
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in words
    try:
        _run([word for word in words if word != "--debug"])
    except TransferkitError as error:
        if debug:
            traceback.print_exc()
        if error.kind != "peer":  # which has said it in the process that failed
            print(f"transferkit: error[{error.kind}]: {one_line(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("transferkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; nothing is left to say
    except OSError as error:  # of the system, at a place where none was expected
        if debug:
            traceback.print_exc()
        place = "" if error.filename is None else f"cannot use {shown(error.filename)}: "
        print(f"transferkit: error[io]: {place}{one_line(error.strerror or error)}", file=sys.stderr)
        return StorageError.exit_status
    except Exception as error:
        if debug:
            raise
        print(
            f"transferkit: error[internal]: {type(error).__name__}: {one_line(error)} - this is a bug of "
            "transferkit; --debug shows where",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words[0] == "--version":
        print(__version__)
        return
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise ConfigError(f"unknown verb {shown(name)}.{did_you_mean(name, VERBS)} Known: {', '.join(VERBS)}.")
    if "-h" in rest or "--help" in rest:
        print(build_parser(VERBS[name]).format_help(), end="")
        return
    if any(word.startswith("--print_config") for word in rest):
        build_parser(VERBS[name]).parse_args(rest)  # prints the recipe and exits
    options = parse_options(name, rest)
    _show_warnings()
    # Compute threads that sleep at barriers instead of spinning: no slower on a quiet machine, and half as fast again
    # beside one busy core (tests/bench/RESULTS.md). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    VERBS[name].run(options)


def _show_warnings() -> None:
    """Print transferkit's own warnings in one line each from now on, as errors are; leave the rest to Python."""
    # Where there is no shared memory scikit-learn's helper says so; whether it needs any is for us to say.
    warnings.filterwarnings("ignore", ".*joblib will operate in serial mode", UserWarning)
    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, TransferkitWarning):
            print(f"transferkit: warning: {one_line(message)}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
