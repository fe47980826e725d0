"""The command line: verbs, flags made from the configuration dataclasses, errors in one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from transferkit import __version__
from transferkit.cli.verbs import RUNNERS
from transferkit.core.errors import ConfigError, TransferkitError, did_you_mean, gather
from transferkit.options.features import (
    REQUIRED,
    BackbonesConfig,
    CalibrateConfig,
    CheckConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FeaturesConfig,
    FinetuneConfig,
    LRFindConfig,
    PlanConfig,
    PredictConfig,
    ProbeConfig,
    ReportConfig,
    SearchConfig,
    SelftestConfig,
    ServeConfig,
    StoreConfig,
    default_of,
    make_config,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main"]

VERBS: dict[str, tuple[type[Any], str]] = {
    "finetune": (FinetuneConfig, "fine-tune a pretrained backbone on a folder of pictures"),
    "plan": (PlanConfig, "what finetune would do: phases, learning rates, predicted time and memory"),
    "lr-find": (LRFindConfig, "LR range test: suggestions, and the curve as CSV and PNG"),
    "search": (SearchConfig, "search for options with Optuna; the best ones become a recipe"),
    "features": (FeaturesConfig, "extract features of a folder, once; kept in the store, exported on request"),
    "probe": (ProbeConfig, "fit a classifier on cached features, in seconds"),
    "evaluate": (EvaluateConfig, "measure a run on labelled pictures; --against another run, picture by picture"),
    "predict": (PredictConfig, "predict the class of pictures with a finished run; CSV or JSON lines"),
    "calibrate": (CalibrateConfig, "fit a run's confidence on labelled pictures it has not seen"),
    "explain": (ExplainConfig, "heat maps of pictures, and the training pictures nearest to them"),
    "report": (ReportConfig, "one page about a run, or one that compares several"),
    "export": (ExportConfig, "ONNX, torch.export, safetensors or skops; verified before the file appears"),
    "serve": (ServeConfig, "a small HTTP server with a page to drop pictures on"),
    "check": (CheckConfig, "audit a data folder before training on it"),
    "backbones": (BackbonesConfig, "list, search and describe backbones"),
    "store": (StoreConfig, "list, verify or clean the feature store"),
    "selftest": (SelftestConfig, "prove on this machine that a killed run resumes exactly"),
}

POSITIONAL = {
    "evaluate": ("run", "data"),
    "predict": ("run", "paths"),
    "calibrate": ("run", "data"),
    "explain": ("run", "paths"),
    "report": ("runs",),
    "export": ("run",),
    "serve": ("run",),
    "backbones": ("pattern",),
    "store": ("action",),
}

NARGS = {"run": None, "data": "?", "paths": "*", "runs": "*", "pattern": "?", "action": "?"}

STANDS_IN = {"run": "-", "data": "-", "paths": ["-"], "runs": ["-"]}

HELP = f"""\
transferkit {__version__}: transfer learning for images

usage: transferkit VERB [--config FILE] [flags]

verbs:
{chr(10).join(f"  {verb:<11}{text}" for verb, (_, text) in VERBS.items())}

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
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except TransferkitError as error:
        if debug:
            traceback.print_exc()
        print(f"transferkit: error[{error.kind}]: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("transferkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; nothing is left to say
        return 0
    except Exception as error:
        if debug:
            raise
        print(
            f"transferkit: error[internal]: {type(error).__name__}: {_one_line(str(error))} - this is a bug of "
            "transferkit; --debug shows where",
            file=sys.stderr,
        )
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}.{did_you_mean(verb, VERBS)} Known: {', '.join(VERBS)}.")
    parser = build_parser(verb)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help(), end="")
        return 0
    if any(word.startswith("--print_config") for word in rest):
        parser.parse_args(rest)  # prints the recipe and exits
    options = parse_options(verb, rest)
    _show_warnings()
    # Compute threads that sleep at barriers instead of spinning: no slower on a quiet machine, and half as fast again
    # beside one busy core (tests/bench/RESULTS.md). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return RUNNERS[verb](options)


# ---- flags ------------------------------------------------------------------------------------------------------


def build_parser(verb: str) -> ArgumentParser:
    """Return the parser of a verb: a flag and a recipe key per field of its dataclass.

    Its `error` raises `ConfigError`.
    """
    import dataclasses
    import typing

    from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentParser, set_loader  # type: ignore[attr-defined]

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ConfigError(_plain_message(message))

    set_loader("recipe", _load_yaml, exceptions=(ValueError,))
    kind, text = VERBS[verb]
    places = POSITIONAL.get(verb, ())
    parser = Parser(
        prog=f"transferkit {verb}", description=f"{text}.", allow_abbrev=False, default_env=False,
        usage=" ".join([f"transferkit {verb}", *(name.upper() for name in places), "[--config FILE] [flags]"]),
    )  # fmt: skip
    parser.parser_mode = "recipe"
    recipe = "YAML file with any of these options; a flag after it goes before it"
    parser.add_argument("--config", action=ActionConfigFile, metavar="FILE", help=recipe)
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        default, text = default_of(item), item.metadata["help"].replace("%", "%%")
        if item.name in places:
            nargs = NARGS[item.name]
            element = hints[item.name] if nargs == "?" else str
            extra: dict[str, Any] = {} if nargs is None else {"nargs": nargs, "default": default}
            parser.add_argument(item.name, type=element, help=text, metavar=item.name.upper(), **extra)
        elif hints[item.name] is bool and not default:
            parser.add_argument(flag(item.name), action="store_true", default=False, help=text)
        else:
            metavar = item.name.rsplit("_", 1)[-1].upper()
            if default == REQUIRED:
                default, text = SUPPRESS, f"{text} (required)"
            parser.add_argument(flag(item.name), type=hints[item.name], default=default, help=text, metavar=metavar)
    return parser


def flag(name: str) -> str:
    """Return the flag of a field: ``batch_size`` -> ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def parse_options(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given, by field name.

    Raises:
        ConfigError: With every unknown flag, unknown key and bad value at once.
    """
    parser = build_parser(verb)
    kind = VERBS[verb][0]
    try:
        options: dict[str, Any] = parser.parse_args(list(words), defaults=False).as_dict()
    except ConfigError as error:
        problems = _diagnose(parser, kind, words, POSITIONAL.get(verb, ())) or [_with_hint(str(error), kind)]
        raise ConfigError(f"{gather(problems)}; see transferkit {verb} --help") from error
    options.pop("config", None)
    if not (verb == "finetune" and options.get("resume")):  # a resume has its options from the run directory
        make_config(kind, options)
    return options


def _diagnose(parser: ArgumentParser, kind: type[Any], words: Sequence[str], places: Sequence[str]) -> list[str]:
    """Return every mistake of a command line that the parser refused; it stops at the first one itself."""
    import dataclasses

    fields = {flag(item.name): item for item in dataclasses.fields(kind)}
    problems = []
    # What stands in a place of its own is not looked at here, only that something does.
    given = bool(words) and not words[0].startswith("--")
    sound: dict[str, Any] = {name: value for name, value in STANDS_IN.items() if given and name in places}
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            continue
        if name not in fields and name != "--config":
            problems.append(f"unknown flag {name}.{did_you_mean(name, [*fields, '--config'])}")
            continue
        if not equals and not (name in fields and fields[name].type == "bool"):
            value = words[position + 1] if position + 1 < len(words) else ""
            if not value or value.startswith("--"):
                problems.append(f"{name} needs a value")
                continue
            equals = "="
        try:
            single = parser.parse_args([f"{name}={value}" if equals else name], defaults=False)
            sound |= {key: part for key, part in single.as_dict().items() if key != "config"}
        except ConfigError as error:
            if "required" not in str(error):  # the other words are left out on purpose
                problems.append(_with_hint(str(error), kind))
    try:
        make_config(kind, {**({"data": "-"} if "--data" in fields else {}), **sound})
    except ConfigError as error:
        problems.append(str(error))
    return problems


def _with_hint(message: str, kind: type[Any]) -> str:
    """Add the closest option to the parser's word on a key that it does not know."""
    import dataclasses
    import re

    unknown = re.search(r"Option '(\w+)' is not accepted", message)
    if unknown is None:
        return message
    known = [item.name for item in dataclasses.fields(kind)]
    return f"unknown key {unknown[1]!r} in the recipe.{did_you_mean(unknown[1], known)}"


def _load_yaml(text: str) -> Any:
    """Load YAML without tags and without duplicate keys, for recipes and for the values of flags."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice, expected each key once")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # a SafeLoader: no tag makes objects
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {_one_line(str(error))}") from error


def _plain_message(message: str) -> str:
    """Return the parser's message in the user's words."""
    import re

    text = _one_line(message)
    text = re.sub(r'Parser key "(\w+)":', lambda match: f"{flag(match[1])}:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "").replace("NoneType", "null")
    union = re.search(r"Does not validate against any of the Union subtypes Subtypes: \[(\w+), Literal\['(\w+)'\]\]"
                      r".* Given value: (.*)$", text)  # fmt: skip
    if union:
        kind = {"int": "a whole number", "float": "a number"}[union[1]]
        text = f"{text[: union.start()]}saw {union[3]!r}, expected {kind} or {union[2]}"
    return text


def _one_line(text: str) -> str:
    """Fold a message into one line and make control characters visible: file names can hold terminal escapes."""
    folded = " ".join(text.split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in folded)


def _show_warnings() -> None:
    """Print transferkit's own warnings in one line each; leave the rest to Python."""
    import warnings

    from transferkit.core.errors import TransferkitWarning

    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, TransferkitWarning):
            print(f"transferkit: warning: {_one_line(str(message))}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
