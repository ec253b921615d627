"""The command line. Everything heavy is imported inside the command that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from vilavt_toolkit.cli.argument_checks import check_overrides, check_recipe_argument, read_resume
from vilavt_toolkit.cli.options import (
    AllowChangesOption,
    CalibrateOption,
    CountingRecipeOption,
    DataFileArgument,
    DataRootOption,
    DeviceMemoryOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
    KindArgument,
    LengthOption,
    LocalFilesOption,
    MaxNewTokensOption,
    ModelArgument,
    NewFolderOption,
    OpenImagesOption,
    Overrides,
    PlanJsonOption,
    PlannedDeviceOption,
    PlannedRecipeArgument,
    RecipeArgument,
    ResumeOption,
    RevisionOption,
    RunArgument,
    SeedOption,
    TemperatureOption,
    TrustOption,
    VersionOption,
)
from vilavt_toolkit.errors import INTERRUPTED, TERMINATED, UsageError, VilavtError
from vilavt_toolkit.registry.trust import trusting_plugins
from vilavt_toolkit.utils.limits import explained_limits
from vilavt_toolkit.utils.text import escape_controls, format_value

# Newer versions of Typer carry their own copy of click. The base of Typer's errors is the right class in either case.
_ClickError = cast(
    "type[typer.BadParameter]",
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)

app = typer.Typer(
    name="vilavt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Check data files before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")

# Listed from the files, since importing the registries for a help text would slow every command down.
_TEMPLATE_KINDS = sorted(file.stem for file in (Path(__file__).parent / "templates").glob("[!_]*.py"))


@app.callback()
def show_version(version: VersionOption = False) -> None:
    """Train, evaluate and ask language models that look at an image again."""
    # The option is carried out while it is read, and no command is needed then.


@app.command("list")
def list_components(
    kind: KindArgument = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One component of the kind, like film. Default: all.")
    ] = None,
) -> None:
    """List the components that a recipe can name, with their settings."""
    from vilavt_toolkit.cli import component_list
    from vilavt_toolkit.registry.plugins import load_builtin
    from vilavt_toolkit.utils.console import make_console

    # A mistyped kind is refused here, before the components import torch.
    registries = component_list.find_registries(kind)
    load_builtin()
    console = make_console()
    if name is not None:
        component_list.print_component(console, registries[0], name)
        return
    for registry in registries:
        component_list.print_components(console, registry)


@app.command("check")
def check_recipe(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    names: Annotated[
        bool, typer.Option("--names", help="Print the names of all weights, which patterns of the recipe match.")
    ] = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Check a recipe without loading weights."""
    check_recipe_argument(recipe, overrides)
    from vilavt_toolkit.cli import commands

    with trusting_plugins(trust_plugins):
        commands.check(recipe, overrides or [], names)


@app.command("plan")
def plan_recipe(
    recipe: PlannedRecipeArgument = None,
    overrides: Overrides = None,
    devices: DevicesOption = None,
    device: PlannedDeviceOption = None,
    device_memory: DeviceMemoryOption = None,
    length: LengthOption = None,
    as_json: PlanJsonOption = False,
    calibrate: CalibrateOption = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Tell the memory and time of training, without a GPU."""
    if recipe is not None:
        check_recipe_argument(recipe, overrides)
    elif not calibrate:
        raise UsageError("Give a recipe to plan, or --calibrate to measure this machine.")
    from vilavt_toolkit.cli import commands

    # Somebody who measures wants a plan for this machine, unless a device is named.
    if calibrate:
        commands.calibrate(as_json, is_alone=recipe is None)
        device = device or "here"
    if recipe is None:
        return
    with trusting_plugins(trust_plugins):
        commands.plan(recipe, overrides or [], commands.PlanOptions(device, device_memory, length, as_json, devices))


@app.command("train")
def train_model(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: ResumeOption = False,
    allow_changes: AllowChangesOption = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Train the model of a recipe on its task."""
    how = read_resume(resume, allow_changes, overrides)
    check_recipe_argument(recipe, overrides)
    from vilavt_toolkit.cli import commands

    with trusting_plugins(trust_plugins):
        commands.train(recipe, overrides or [], how, allow_changes)


@app.command("rl")
def reinforce_model(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: ResumeOption = False,
    allow_changes: AllowChangesOption = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Improve a trained run by reinforcement learning.

    The recipe's section `rl` says how. The stage starts from the run of the recipe, or from rl.init_from.
    """
    how = read_resume(resume, allow_changes, overrides)
    check_recipe_argument(recipe, overrides)
    from vilavt_toolkit.cli import commands

    with trusting_plugins(trust_plugins):
        commands.reinforce(recipe, overrides or [], how, allow_changes)


@app.command("eval")
def evaluate_model(
    run: RunArgument,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Write into RUN/eval-NAME in place of RUN/eval.")
    ] = None,
    trust_plugins: TrustOption = False,
) -> None:
    """Evaluate a run, or a recipe's checkpoint.

    Every arm of eval.arms answers the same items, so the arms can be compared. An earlier evaluation is moved aside.
    """
    # RUN may be a folder or a recipe, which only the command can tell apart.
    check_overrides(overrides)
    from vilavt_toolkit.cli import commands

    with trusting_plugins(trust_plugins):
        commands.evaluate(run, overrides or [], name)


@app.command("compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Also write the table into this Markdown file.")
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Compare training stages: accuracy and zooms spent.")
    ] = False,
    encoders: Annotated[
        bool, typer.Option("--encoders", help="Compare encoders: accuracy, parameters, seconds per training step.")
    ] = False,
) -> None:
    """Compare evaluated runs in one table.

    Without an option the table shows what the inquiry is worth to the encoder in each run.
    """
    # The three tables have different columns, and only the other two can be written into a page.
    if stages and (encoders or write is not None):
        raise UsageError("--stages cannot be combined with --encoders or --write. Leave one of them out.")
    from vilavt_toolkit.cli import commands

    if stages:
        commands.compare_stages(runs)
    else:
        commands.compare(runs, write, encoders)


@app.command("ask")
def ask_question(
    run: ModelArgument,
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Images, then the question.")],
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Draw regions and crops into this picture.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add to the picture where the encoder attended, for each word.")
    ] = False,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print answer, reason, turns and cost as one line of JSON.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    revision: RevisionOption = None,
    local_files_only: LocalFilesOption = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Ask a model a question about images."""
    # What can be refused without loading a model is refused here, at once.
    *images, question = inputs
    if not images:
        raise UsageError(
            f"at least one image must stand before the question, and only {format_value(question)} was given. "
            "Write `vilavt ask MODEL IMAGE QUESTION`."
        )
    if not question.strip():
        raise UsageError("the question is empty. Write it after the images: `vilavt ask MODEL IMAGE QUESTION`.")
    if explain and trace is None:
        raise UsageError("--explain draws into the picture of --trace. Add `--trace trace.png`.")
    from vilavt_toolkit.cli import commands

    commands.ask(
        commands.ModelOptions(run, device, dtype, max_new_tokens, revision, local_files_only, trust_plugins),
        [Path(image) for image in images],
        question,
        commands.AskOptions(temperature, seed, trace, explain, as_json),
    )


@app.command("chat")
def chat_with_model(
    run: ModelArgument,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images to begin with.")] = None,
    load: Annotated[Path | None, typer.Option("--load", metavar="DIR", help="Continue a saved conversation.")] = None,
    temperature: TemperatureOption = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from the likeliest tokens of this total probability.")
    ] = 1.0,
    seed: SeedOption = 0,
    grammar: Annotated[
        bool, typer.Option("--grammar", help="Constrain turns to those that can be carried out.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    revision: RevisionOption = None,
    local_files_only: LocalFilesOption = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Chat with a model about images.

    Every line is a question, or a command that begins with a slash. /help lists the commands.
    """
    from vilavt_toolkit.cli import commands

    options = commands.ModelOptions(run, device, dtype, max_new_tokens, revision, local_files_only, trust_plugins)
    # A chat that was interrupted ends with a code of its own.
    raise typer.Exit(commands.chat(options, images or [], temperature, top_p, seed, grammar, load))


@app.command("export")
def export_model(
    run: ModelArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write, new or empty.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Checkpoint format to write: one of `vilavt list format`, or native for this toolkit's own with the "
            "recipe. Default: the only format of the list.",
        ),
    ] = None,
    dtype: DtypeOption = None,
    trust_plugins: TrustOption = False,
) -> None:
    """Write a model into a folder for other code."""
    from vilavt_toolkit.cli import commands

    with trusting_plugins(trust_plugins):
        commands.export(run, to, format, dtype)


@app.command("new")
def new_component(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"Kind of the component: {', '.join(_TEMPLATE_KINDS)}.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for recipes, in lower_snake_case.")],
    folder: NewFolderOption = None,
) -> None:
    """Write a new component and its test.

    Both work as written, and are meant to be changed into your own.
    """
    from vilavt_toolkit.cli import scaffold
    from vilavt_toolkit.utils.console import make_console

    written = scaffold.write_component(kind, name, folder)
    console = make_console()
    for line in scaffold.describe_next_steps(written):
        console.print(line)


@data_app.command("check")
def check_data(
    file: DataFileArgument,
    root: DataRootOption = "",
    recipe: CountingRecipeOption = None,
    decode: OpenImagesOption = False,
    trust_plugins: TrustOption = False,
) -> None:
    """Check a data file and show the lengths of its samples."""
    # A mistyped recipe is refused before a large file is read.
    if recipe is not None:
        check_recipe_argument(recipe, None)
    from vilavt_toolkit.cli import data_check

    with trusting_plugins(trust_plugins):
        data_check.check_data(file, root, recipe, decode)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; print what a user did wrong in one sentence on stderr."""
    # Typer's own error printing is off, so that usage errors look like all others. Defects keep their traceback.
    try:
        code = explained_limits()(app)(args=arguments, prog_name="vilavt", standalone_mode=False)
    except VilavtError as error:
        return print_failure(error.report(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as ended:
        if ended.code != TERMINATED:
            raise
        return _tell_end("asked to end", TERMINATED)
    except _ClickError as error:
        return print_failure(_describe_usage_error(error), UsageError.exit_code)
    if code == INTERRUPTED:
        return _tell_end("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _tell_end(message: str, code: int) -> int:
    """Print that the user ended a command, unless whoever launched this process does, and return its exit code."""
    from vilavt_toolkit.training.launch import is_launched_here

    return code if is_launched_here() else print_failure(message, code)


def _describe_usage_error(error: typer.BadParameter) -> str:
    # `vilavt` alone raises an error whose message is the whole help.
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()
    message, context = error.format_message(), getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?", ")")) else "."
    command = context.command_path if context is not None else "vilavt"
    return f"UsageError: {message}{stop} See `{command} --help`."


def print_failure(message: str, code: int) -> int:
    """Print why a command failed on standard error, and return its exit code."""
    typer.echo(escape_controls(message), err=True)
    return code
