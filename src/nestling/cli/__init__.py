"""The command line: thin. A file a group of commands; every command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from nestling.cli import memories
from nestling.cli.evals import EVALS, demo
from nestling.cli.learning import generate, learn, train
from nestling.cli.levels import EXAMPLES as LEVELS_EXAMPLES
from nestling.cli.levels import MODEL, levels
from nestling.cli.pretrained import convert, merge
from nestling.cli.reading import read
from nestling.cli.sleeping import sleep
from nestling.cli.terminal import Arguments, sentence

Command = Callable[..., None]
COMMANDS: dict[str, Command] = {
    "demo": demo,
    "train": train,
    "learn": learn,
    "sleep": sleep,
    "read": read,
    "generate": generate,
    "convert": convert,
    "merge": merge,
    "levels": levels,
}
POSITIONAL = {"levels": ("model", MODEL)}  # an argument that has no option's name and may be left out, and its help
GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "memory": ("Look into a memory file, go back, or change its levels.", memories.COMMANDS),
    "eval": ("Run a benchmark.", EVALS),
}
EXAMPLES = {
    "learn": "nestling learn --model model --text '[\"notes.txt\"]' --memory me.safetensors --snapshot before-notes",
    "sleep": "nestling sleep --model model --memory me.safetensors --new '[\"notes.txt\"]' --old '[\"known.txt\"]' --passes 4",
    "read": "nestling read --model model --text '[\"book.txt\"]' --checkpoint book.safetensors",
    "generate": "nestling generate --model model --memory me.safetensors --prompt 'In short, '",
    "convert": "nestling convert --model llama --out model --assign blocks "
    '--levels \'[{"period": 256, "lr": 0.1, "reset": "context", "clip": 0.5}]\'',
    "merge": "nestling merge --model model --memory me.safetensors --out plain",
    **LEVELS_EXAMPLES,
    **{f"memory {name}": example for name, example in memories.EXAMPLES.items()},
}
FLAGS = {
    "quick": "much smaller: a minute or a few",
    "full": "much larger; it can be interrupted and goes on",
    "response": "show instead which frequencies of a gradient move each level, measured and in closed form: of the model, of "
    "--levels, or of three that show what period, momentum and decay do",
    "end_context": "end the context after reading, so that levels which reset do",
    "go_on": "go on from where the memory's text stands, with what is attended to and recalled there",
}


def _parser() -> Arguments:
    """One subcommand a function; its booleans are flags."""
    parser = Arguments(prog="nestling", description="Language models that keep learning.", parser_mode="toml")
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        commands.add_subcommand(name, _arguments(name, function), help=_summary(function))
    for group, (summary, functions) in GROUPS.items():
        inner = Arguments(parser_mode="toml")
        commands.add_subcommand(group, inner, help=summary)
        members = inner.add_subcommands(dest="member")
        for name, function in functions.items():
            members.add_subcommand(name, _arguments(f"{group} {name}", function), help=_summary(function))
    return parser


def _arguments(name: str, function: Command) -> Arguments:
    """A function's arguments as options, its booleans as flags."""
    example = EXAMPLES.get(name)
    parser = Arguments(parser_mode="toml", epilog=example and f"example: {example}")
    parser.add_argument("--config", action="config", help="a TOML file with any of these settings")
    flags = [argument for argument, hint in function.__annotations__.items() if hint == "bool"]
    positional = [POSITIONAL[name]] if name in POSITIONAL else []
    for argument, hint in positional:
        parser.add_argument(argument, nargs="?", help=hint)
    parser.add_function_arguments(function, skip={*flags, *(argument for argument, _ in positional)})
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true", help=FLAGS[flag])
    return parser


def _summary(function: Command) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def main() -> None:
    """Run a command. Bad input ends with one sentence and exit status 2 (NESTLING_TRACEBACK=1 shows the traceback)."""
    parser = _parser()
    given = parser.instantiate(parser.parse_args())
    command, functions = given[given.command], COMMANDS
    name = given.command
    if name in GROUPS:
        functions, name = GROUPS[name][1], command.member
        command = command[name]
    arguments = {key: value for key, value in vars(command).items() if key != "config"}
    try:
        functions[name](**arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("nestling: stopped")
    except BrokenPipeError:  # whoever read what is printed has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes, at exit
        sys.exit(1)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("NESTLING_TRACEBACK"):
            raise
        print(f"nestling: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
