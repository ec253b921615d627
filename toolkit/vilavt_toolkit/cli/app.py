"""The command line. Everything heavy is imported inside the command that uses it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import MISSING, Field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vilavt_toolkit.errors import UnknownName, UsageError, VilavtError

if TYPE_CHECKING:
    from rich.console import Console

    from vilavt_toolkit.registry import Entry, Registry

INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM
# Typer carries its own copy of click from some version on; the base of its errors is the same class in each.
_ClickError = cast(
    "type[typer.BadParameter]",
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)

app = typer.Typer(
    name="vilavt",
    help="Language models that look again: train, evaluate and ask.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
new_app = typer.Typer(help="Write a new component and its test.", no_args_is_help=True)
app.add_typer(new_app, name="new")
data_app = typer.Typer(help="Look at data before it is learned from.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of an installed recipe, or path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, like train.steps=100.")
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Folder of a run, folder of ViLaVT or Qwen2.5-VL weights, or a hub name like owner/name."
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="Type of the weights: float32, bfloat16, float16; else as stored.")
]

MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest turn, in tokens; the paper's model has 2048.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Revision of a hub name.")]
LocalFilesOption = Annotated[
    bool, typer.Option("--local-files-only", help="Of a hub name take what was fetched before; ask no hub.")
]


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="One kind, like modulator; all without it.")] = None,
) -> None:
    """Show the components a recipe can name."""
    registries = _registries(kind)
    from vilavt_toolkit.registry.plugins import load_builtin

    load_builtin()
    console = _console()
    for registry in registries:
        console.print(f"{registry.plural.capitalize()} (kind: {registry.kind})", style="bold underline")
        for entry in registry.entries():
            _show_entry(console, entry)
        if not registry.names():
            console.print("  none\n")


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe, loading no weights."""
    _require_recipe(recipe, overrides)
    from vilavt_toolkit.cli import commands

    commands.check(recipe, overrides or [])


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train the model of a recipe."""
    _require_recipe(recipe, overrides)
    from vilavt_toolkit.cli import commands

    commands.train(recipe, overrides or [], resume=resume)


@app.command("rl")
def reinforce(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Reinforce the trained model of a recipe, as its section `rl` says."""
    _require_recipe(recipe, overrides)
    from vilavt_toolkit.cli import commands

    commands.reinforce(recipe, overrides or [], resume=resume)


@app.command("eval")
def evaluate(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Folder of a run, or a recipe with `model.checkpoint`, which needs none."),
    ],
    overrides: Overrides = None,
) -> None:
    """Evaluate a run, or the checkpoint that a recipe names, arm by arm."""
    _require_overrides(overrides)
    from vilavt_toolkit.cli import commands

    commands.evaluate(run, overrides or [])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    write: Annotated[Path | None, typer.Option("--write", help="Write the table into this Markdown file too.")] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Compare what training stages answer, and the zooms they spend on it.")
    ] = False,
    encoders: Annotated[
        bool, typer.Option("--encoders", help="Compare encoders: accuracy, parameters, seconds per training step.")
    ] = False,
) -> None:
    """Show what being told the inquiry is worth in each of several evaluated runs, side by side."""
    if stages and (encoders or write is not None):
        raise UsageError("--stages goes with neither --encoders nor --write; leave one out.")
    from vilavt_toolkit.cli import commands

    if stages:
        commands.compare_stages(runs)
    else:
        commands.compare(runs, write, encoders)


@app.command()
def ask(
    run: ModelArgument,
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Images, last the question.")],
    trace: Annotated[Path | None, typer.Option("--trace", help="Draw regions and crops into this picture.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add to the picture what the encoder attended to, word by word.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    revision: RevisionOption = None,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Ask a model about images."""
    *images, question = inputs
    if not images:
        raise UsageError(f"give at least one image before the question; only {question!r} was given.")
    if not question.strip():
        raise UsageError("the question, last behind the images, is empty; write one.")
    if explain and trace is None:
        raise UsageError("--explain draws into the picture of --trace; name one.")
    from vilavt_toolkit.cli import commands

    commands.ask(
        commands.Asked(run, device, dtype, max_new_tokens, revision, local_files_only),
        [Path(image) for image in images],
        question,
        trace=trace,
        explain=explain,
    )


@app.command()
def chat(
    run: ModelArgument,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images to begin with.")] = None,
    load: Annotated[Path | None, typer.Option("--load", metavar="DIR", help="Go on with a saved conversation.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="What is drawn with a temperature, drawn again.")] = 0,
    grammar: Annotated[
        bool, typer.Option("--grammar", help="Let only turns be written that can be carried out.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    revision: RevisionOption = None,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Hold a conversation with a model: a line is a question, or a command; /help lists them."""
    from vilavt_toolkit.cli import commands

    asked = commands.Asked(run, device, dtype, max_new_tokens, revision, local_files_only)
    raise typer.Exit(commands.chat(asked, images or [], temperature, top_p, seed, grammar, load))


@app.command("export")
def export_model(
    run: ModelArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write, new or empty.")],
    format: Annotated[
        str, typer.Option("--format", help="vilavt: as the paper's code reads it; native: ours, with its recipe.")
    ] = "vilavt",
    dtype: DtypeOption = None,
) -> None:
    """Write a model into a folder that other code, or this, loads."""
    from vilavt_toolkit.cli import commands

    commands.export(run, to, format, dtype)


@new_app.command("modulator")
def new_modulator(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in recipes, in lower_snake_case.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder to write into.")] = Path(),
) -> None:
    """Write a working modulator and its test, to be changed into your own."""
    from vilavt_toolkit.cli.scaffold import new_modulator as write
    from vilavt_toolkit.registry.plugins import display

    module, test = write(name, folder)
    console = _console()
    console.print(f"wrote {display(module)} and {display(test)}")
    console.print(f"test it:  pytest {display(test)}")
    console.print(f"use it:   plugins: [./{module.name}] in a recipe beside it, and model.modulator: {name}")


@data_app.command("check")
def check_data(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON list, JSON lines, or shards: part-{000..010}.tar.")],
    root: Annotated[str, typer.Option("--root", help="Folder that paths of images are relative to.")] = "",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Count tokens and patches as this recipe's model would.")
    ] = None,
    decode: Annotated[bool, typer.Option("--open", help="Decode every image, not only its header.")] = False,
) -> None:
    """Check a data file of any known format, and show how long its samples are."""
    if recipe is not None:
        _require_recipe(recipe, None)
    from vilavt_toolkit.cli import data_check as command

    command.check(file, root, recipe, decode)


def _console() -> Console:
    from rich.console import Console

    # Names and settings are data, not markup. Where a program reads along, lines are long rather than broken.
    width = None if sys.stdout.isatty() else 200
    return Console(markup=False, highlight=False, width=width, soft_wrap=width is not None)


def _registries(kind: str | None) -> list[Registry[Any]]:
    """The registries to show; a kind may be written as errors do (`modulators`, `stopping policy`)."""
    from vilavt_toolkit.registry import REGISTRIES
    from vilavt_toolkit.settings import did_you_mean

    if kind is None:
        return list(REGISTRIES.values())
    wanted = kind.replace("_", " ").replace("-", " ").lower()
    for registry in REGISTRIES.values():
        if wanted in (registry.kind.replace("_", " "), registry.label, registry.plural):
            return [registry]
    raise UnknownName(
        f"no kind of component named '{kind}'.{did_you_mean(kind, tuple(REGISTRIES))}\n  kinds: {', '.join(REGISTRIES)}"
    )


def _show_entry(console: Console, entry: Entry[Any]) -> None:
    from rich.table import Table

    from vilavt_toolkit.config.parsing import typed_fields

    console.print(f"  {entry.name}", style="bold", end="")
    console.print(f"  {entry.summary}  [{entry.origin}]")
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    for name, (f, kind) in typed_fields(entry.config).items():
        table.add_row(f"      {name}", f"{_type_name(f, kind)}, {_default(f)}: {f.metadata.get('help', '')}")
    if table.row_count:
        console.print(table)
    console.print()


def _type_name(f: Field[Any], kind: Any) -> str:
    from vilavt_toolkit.config.parsing import expected

    if "part" not in f.metadata:
        return expected(kind)
    return f"{f.metadata['part']}{', one or a list' if f.metadata['many'] else ''}"


def _default(f: Field[Any]) -> str:
    """Write a default as a recipe would."""
    from vilavt_toolkit.config.parsing import to_plain

    if names := f.metadata.get("default_names"):
        return f"default {', '.join(names)}"
    if f.default is MISSING and f.default_factory is MISSING:
        return "required"
    default = f.default if f.default_factory is MISSING else f.default_factory()
    text = json.dumps(to_plain(default), ensure_ascii=False)
    return f"default {text if len(text) <= 80 else text[:79] + '…'}"


def _require_overrides(overrides: list[str] | None) -> None:
    from vilavt_toolkit.config.recipe import split_override

    for override in overrides or ():
        split_override(override)


def _require_recipe(recipe: str, overrides: list[str] | None) -> None:
    """Refuse what is wrong already here, before anything heavy is imported."""
    from vilavt_toolkit.config.recipe import find_recipe

    find_recipe(recipe)
    _require_overrides(overrides)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 for failure, 2 for usage, 130 when interrupted, 143 when asked to end."""
    # Threads that spin long while they wait slow training down where other work shares the cores; threads that never
    # spin slow it down where none does.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # It tells every attempt to reach the hub, twice; what came of them is told in one sentence.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code, having told what a user did wrong in one sentence."""
    try:
        code = app(args=arguments, prog_name="vilavt", standalone_mode=False)
    except VilavtError as error:
        return _fail(error.report(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as ended:
        if ended.code != TERMINATED:
            raise
        return _fail("asked to end", TERMINATED)
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `vilavt` alone: the message is the whole help
            return _fail(error.format_message(), UsageError.exit_code)
        message, context = error.format_message(), getattr(error, "ctx", None)
        stop = "" if message.endswith((".", "?", ")")) else "."
        command = context.command_path if context is not None else "vilavt"
        return _fail(f"UsageError: {message}{stop} See `{command} --help`.", UsageError.exit_code)
    if code == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    typer.echo(message, err=True)
    return code
