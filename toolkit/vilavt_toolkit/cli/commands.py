"""The work of each command. Each imports the heavy modules that it needs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.launch import is_launched_here
from vilavt_toolkit.utils.console import make_console
from vilavt_toolkit.utils.files import check_writable, resolve_address

if TYPE_CHECKING:
    from vilavt_toolkit.chat.answer import Answer
    from vilavt_toolkit.models.model import VisualChatModel
    from vilavt_toolkit.vision.explain import Explanation


def check(name: str, overrides: Sequence[str], names: bool = False) -> None:
    """Check a recipe and print its components, without allocating or loading weights; raises RecipeErrors.

    With `names` the names of all weights are printed too.
    """
    from vilavt_toolkit.cli.learning_report import describe_average, make_learning_table, make_names_table
    from vilavt_toolkit.cli.recipe_check import check_recipe
    from vilavt_toolkit.cli.recipe_report import describe_samples, make_parts_table

    recipe = _read_recipe(name, overrides)
    report = check_recipe(recipe)
    console = make_console()
    console.print(make_parts_table(recipe, report))
    console.print(make_learning_table(report.learning))
    if (average := describe_average(recipe.recipe.train)) is not None:
        console.print(average)
    if names:
        console.print(make_names_table(report.learning))
    for line in describe_samples(report):
        console.print(line)
    console.print(
        f"{recipe.path}: every key and name is known, shapes and weights fit, and samples can be built. "
        "To check a part's code, run its contract test."
    )


@dataclass(frozen=True)
class PlanOptions:
    """Devices and lengths that a plan is made for, as the command line has them."""

    device: str | None = None
    memory: str | None = None
    length: int | None = None
    as_json: bool = False
    devices: int | None = None


def calibrate(as_json: bool, is_alone: bool) -> None:
    """Measure the rates of this machine, keep them for this user, and print them; raises UsageError.

    A plan that follows as JSON has stdout to itself.
    """
    from dataclasses import asdict

    from vilavt_toolkit.cli.plan_report import print_rates
    from vilavt_toolkit.planning import calibration
    from vilavt_toolkit.planning.measured import save_rates

    rates = calibration.calibrate()
    file = save_rates(rates)
    if as_json and is_alone:
        sys.stdout.write(f"{json.dumps({'file': str(file), **asdict(rates)})}\n")
    else:
        print_rates(make_console(stderr=as_json), rates, file)


def plan(name: str, overrides: Sequence[str], options: PlanOptions) -> None:
    """Simulate a step of every stage of a recipe, and print what it takes; raises VilavtError."""
    from vilavt_toolkit.planning.measured import choose_rates
    from vilavt_toolkit.planning.rates import parse_memory

    # What can be refused without a model is refused before one is built.
    rates = choose_rates(options.device)
    memory = None if options.memory is None else parse_memory(options.memory)
    from vilavt_toolkit.cli.plan_report import print_plan, print_remedies
    from vilavt_toolkit.planning import plan as planning
    from vilavt_toolkit.planning.remedies import remedy_to_json, try_remedies

    found = []
    devices = [] if options.devices is None else [f"train.devices={options.devices}"]
    with planning.reading_recipe(name, [*overrides, *devices]) as reader:
        recipe = reader.read()
        if options.device is None:
            rates = choose_rates(None, is_cpu=recipe.recipe.train.accelerator == "cpu")
        request = planning.PlanRequest(rates, memory, options.length)
        for stage in planning.list_stages(recipe):
            stage_plan = planning.plan_stage(recipe, stage, request, reader.stand_ins)
            if not options.as_json:
                # At once: the remedies take longer than the plan.
                print_plan(make_console(), recipe.name, stage_plan, request)
            tried = [] if stage_plan.fits else [*try_remedies(recipe, reader.read, stage, request, reader.stand_ins)]
            found.append({**planning.to_json(stage_plan), "remedies": [remedy_to_json(each) for each in tried]})
            if tried and not options.as_json:
                print_remedies(make_console(), tried)
    if options.as_json:
        sys.stdout.write(f"{json.dumps(found)}\n")


Resume = bool | Literal["auto"]
"""Continue a run, or with `auto` if there is one."""


def train(name: str, overrides: Sequence[str], how: Resume, allow_changes: bool = False) -> None:
    """Run the supervised stage of a recipe; raises VilavtError."""
    from vilavt_toolkit.checkpoints.run_folder import expand_home

    recipe = _read_recipe(name, overrides)
    resume = _decide_resume(how, lambda: expand_home(recipe.recipe.run))
    if _launch_ranks(recipe, ["train", name, *overrides, *_resume_options(resume, allow_changes)]):
        return
    from vilavt_toolkit.training.supervised.run import run_supervised
    from vilavt_toolkit.training.world import find_world

    # Asked before, since Lightning forgets the processes when training ends.
    is_first = find_world().is_first
    run = run_supervised(recipe, resume, allow_changes)
    if is_first:
        make_console().print(f"the run is in {run}; evaluate it with: vilavt eval {run}")


def _launch_ranks(recipe: CheckedRecipe, arguments: Sequence[str]) -> bool:
    """Run a command as one process for each device; return False if this process is to run it."""
    section = recipe.recipe.train
    if section.devices == 1 and section.nodes == 1:
        return False
    from vilavt_toolkit.registry.trust import trusts_all
    from vilavt_toolkit.training.launch import launch_ranks
    from vilavt_toolkit.training.world import check_devices, find_launcher

    if find_launcher() != "none":
        return False
    check_devices(section)
    launch_ranks([*arguments, *(["--trust-plugins"] if trusts_all() else [])], section.devices, section.nodes)
    return True


def _resume_options(resume: bool, allow_changes: bool) -> list[str]:
    return [*(["--resume"] if resume else []), *(["--allow-changes"] if allow_changes else [])]


def _decide_resume(how: Resume, find_run: Callable[[], Path]) -> bool:
    """Return True if a run is to be resumed: with `auto`, if it has a checkpoint."""
    if how != "auto":
        return how
    from vilavt_toolkit.checkpoints.native import find_checkpoint

    try:
        find_checkpoint(find_run())
        return True
    except RunError:
        return False


def reinforce(name: str, overrides: Sequence[str], how: Resume, allow_changes: bool = False) -> None:
    """Run the reinforcement stage of a recipe; raises VilavtError."""
    recipe = _read_recipe(name, overrides)
    from vilavt_toolkit.training.reinforcement.run import rl_run_folder, run_reinforcement

    run = run_reinforcement(recipe, _decide_resume(how, lambda: rl_run_folder(recipe)), allow_changes)
    make_console().print(f"the run is in {run}; evaluate it with: vilavt eval {run}")


def evaluate(run: str, overrides: Sequence[str], name: str | None = None) -> None:
    """Evaluate a run, or the checkpoint of a recipe, under every arm; raises VilavtError.

    Items, summary and an example are written into the run's folder, or into the one that the recipe would train in.
    """
    from vilavt_toolkit.evaluation.run import evaluate_recipe, evaluate_run
    from vilavt_toolkit.evaluation.start import names_recipe

    if names_recipe(run):
        evaluate_recipe(_read_recipe(run, overrides), make_console(), name)
    else:
        evaluate_run(run, overrides, make_console(), name)


def export(run: str, to: Path, format: str | None, dtype: str | None) -> None:
    """Write a model into a folder in a checkpoint format; raises VilavtError."""
    from vilavt_toolkit.checkpoints.exporting import export as write_model

    make_console().print(f"the model is in {write_model(run, to, format, dtype)}")


def compare(runs: Sequence[Path], write: Path | None, encoders: bool = False) -> None:
    """Print evaluated runs side by side, and write the table into the file `write` if given; raises VilavtError."""
    from vilavt_toolkit.evaluation import compare as comparison
    from vilavt_toolkit.evaluation import compare_encoders as by_encoder

    table = (
        by_encoder.build_encoder_table(by_encoder.read_encoder_runs(runs))
        if encoders
        else comparison.build_modulator_table(comparison.read_summaries(runs))
    )
    shown, console = Table(), make_console()
    # Words stay on one line and numbers line up at their last digit.
    for number, column in enumerate(table.header):
        words = number < table.text_columns
        shown.add_column(column, justify="left" if words else "right", no_wrap=words)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(table.provenance)
    if write is not None:
        comparison.write_table(table, write)
        console.print(f"table: {write}")


def compare_stages(runs: Sequence[Path]) -> None:
    """Print the accuracy of several evaluated runs and the zooms that they spend; raises VilavtError."""
    from vilavt_toolkit.evaluation import compare_stages as stages

    answered, console = stages.read_stage_items(runs), make_console()
    shown = Table(title="accuracy and needless zooms in % [95% interval]")
    # The first two columns are names, which read from the left and must not be broken. The others are numbers.
    for number, column in enumerate(stages.HEADER):
        shown.add_column(column, justify="left" if number < 2 else "right", no_wrap=number < 2)
    for run in answered:
        shown.add_row(*run.format_row())
    console.print(shown)
    for line in stages.format_stage_differences(answered):
        console.print(line)


@dataclass(frozen=True)
class ModelOptions:
    """The model that answers, and how it is loaded."""

    model: str
    device: str = "auto"
    dtype: str | None = None
    max_new_tokens: int = 256
    revision: str | None = None
    local_files_only: bool = False
    trust_plugins: bool = False

    def load(self) -> VisualChatModel:
        """Load the model; raises VilavtError."""
        from vilavt_toolkit.checkpoints.loading import load

        return load(
            self.model, self.device, self.dtype, self.revision, self.local_files_only, trust_plugins=self.trust_plugins
        )


@dataclass(frozen=True)
class AskOptions:
    """Options of one question, and of what is printed of its answer."""

    temperature: float = 0.0
    seed: int = 0
    trace: Path | None = None
    explain: bool = False
    as_json: bool = False


def ask(options: ModelOptions, images: Sequence[Path], question: str, asking: AskOptions) -> None:
    """Ask a model about images and print the answer; raises VilavtError."""
    from vilavt_toolkit.chat.chat import Chat
    from vilavt_toolkit.generation.sampling import Decoding
    from vilavt_toolkit.report.trace import draw_trace
    from vilavt_toolkit.utils.pictures import check_picture_name

    # What no model is needed for is refused before one spends minutes on an answer.
    decoding = Decoding(options.max_new_tokens, asking.temperature, asking.seed)
    if asking.trace is not None:
        check_picture_name(asking.trace)
        check_writable(asking.trace)
    paths = [resolve_address(image) for image in images]
    answer = Chat(options.load(), paths, decoding).ask(question)
    if asking.as_json:
        # Escapes of JSON, so that no terminal obeys what a model wrote.
        sys.stdout.write(f"{json.dumps(answer.to_json())}\n")
    else:
        _print_answer(answer)
    if asking.trace is not None:
        draw_trace(answer.trace, asking.trace, _explain_answer(answer) if asking.explain else None)
        make_console(stderr=asking.as_json).print(f"trace: {asking.trace}")


def _print_answer(answer: Answer) -> None:
    """Print the turns that led to an answer, the answer, why it ended, and what it cost."""
    from vilavt_toolkit.chat.console import format_cost

    console = make_console()
    for turn in answer.trace.turns:
        if turn.malformed:
            console.print(f"malformed: {turn.malformed}", style="dim")
        elif turn.thought:
            console.print(f"thought: {turn.thought}", style="dim")
        if turn.inquiry or turn.regions:
            console.print(f"inquiry: {turn.inquiry} ({len(turn.regions)} regions)", style="dim")
        if turn.feedback:
            console.print(f"rejected: {turn.feedback}", style="dim")
    console.print(str(answer), style="bold")
    console.print(f"stopped: {answer.why}; cost: {format_cost(answer.cost)}", style="dim")


def chat(
    options: ModelOptions,
    images: Sequence[Path],
    temperature: float,
    top_p: float,
    seed: int,
    grammar: bool,
    saved: Path | None,
) -> int:
    """Hold a conversation over standard input and return the exit code; raises VilavtError if it cannot begin."""
    from vilavt_toolkit.chat.chat import Chat
    from vilavt_toolkit.chat.terminal import run_terminal
    from vilavt_toolkit.generation.sampling import Decoding

    decoding = Decoding(options.max_new_tokens, temperature, seed, top_p, grammar=grammar)
    model = options.load()
    conversation = Chat(model, decoding=decoding)
    if saved is not None:
        # A saved chat brings its own sampling, and the options of this command come first.
        conversation = Chat.load(saved, model)
        conversation.decoding = decoding
    for image in images:
        conversation.add(resolve_address(image))
    return run_terminal(conversation, options.model, make_console(), make_console(stderr=True))


def _explain_answer(answer: Answer) -> Mapping[int, Explanation]:
    """Return the answer's heat maps, or none with a warning if it has no zoom; raises InputError if none can be."""
    # A picture without heat maps is right for an answer without a zoom. Modulators that attend to no word would give
    # the same picture for every answer, so that it would say what is not so.
    trajectory = answer.trajectory
    if not any(trajectory.groups[region.group].ids for region in trajectory.regions):
        logging.getLogger(__name__).warning("the model did not zoom, so that the picture has no heat maps.")
        return {}
    return answer.explain()


def _read_recipe(name: str, overrides: Sequence[str]) -> CheckedRecipe:
    """Read a recipe by name or path and print what the reader should know, such as settings that were dropped."""
    from vilavt_toolkit.checkpoints.native import load_run_recipe

    recipe = load_run_recipe(name, overrides)
    # A process that was launched as one of several reads what the launcher has read, and told.
    for note in () if is_launched_here() else recipe.notes:
        make_console(stderr=True).print(f"note: {note}")
    return recipe
