"""What the commands of the command line do, once it is clear that they are meant."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe, recipe_names
from vilavt_toolkit.config.schema import Part, RLSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.assemble import Collector, assemble
from vilavt_toolkit.models.model import VisualChatModel

if TYPE_CHECKING:
    from vilavt_toolkit.chat.answer import Answer
    from vilavt_toolkit.vision.explain import Explanation


def check(name: str, overrides: Sequence[str]) -> None:
    """Check a recipe and show its parts; nothing is allocated or loaded. Raises RecipeErrors."""
    recipe = _read(name, overrides)
    model = _checked(recipe)
    console = _console()
    console.print(_parts(recipe, model))
    console.print(f"{recipe.path}: every key, name and shape is right")


def _checked(recipe: CheckedRecipe) -> VisualChatModel:
    """The recipe's model without its weights; raises RecipeErrors with all that would fail later."""
    from vilavt_toolkit.training.trainable import freeze, try_optimizer

    sections = recipe.recipe
    collect = Collector(str(recipe.path))
    with torch.device("meta"):
        model = collect.build("model", lambda: assemble(sections.model, str(recipe.path)))
    if sections.model.checkpoint:
        collect.build("model.checkpoint", lambda: _check_checkpoint(sections.model.checkpoint))
    task: Task | None = collect.build("task", lambda: _made(sections.task))
    if task is not None:
        made = task
        collect.build("task", lambda: made.length("train"))
        collect.build("eval.split", lambda: made.length(sections.eval.split))
        if sections.rl is not None:
            split = sections.rl.split
            collect.build("rl.split", lambda: made.length(split))
    optimizer = collect.build("train.optimizer", lambda: _made(sections.train.optimizer))
    learning = [weight for weight in model.parameters() if weight.requires_grad] if model is not None else []
    if model is not None:
        whole = model
        if collect.fits("train.freeze", lambda: freeze(whole, sections.train.frozen)) and optimizer is not None:
            collect.fits("train.optimizer", lambda: try_optimizer(optimizer, whole))
        if sections.train.compile:
            collect.fits("train.compile", whole.encoder.check_compiles)
    if sections.rl is not None:
        for weight in learning:  # what the first stage freezes the second may train
            weight.requires_grad_(True)
        _check_reinforcement(collect, sections.rl, model)
    collect.finish()
    assert model is not None
    return model


def _check_checkpoint(name: str) -> None:
    """Hold that a folder's weights are there and whole, reading none; a hub's are looked at when they are fetched."""
    found = foreign.find(name, weights=False)
    if not foreign.is_hub_name(name):
        found.format.check(found.folder)


def _check_reinforcement(collect: Collector, section: RLSection, model: VisualChatModel | None) -> None:
    """Build everything that reinforcement is made of; what fails is kept in `collect`."""
    from vilavt_toolkit.training.reinforcement.rollouts import WeightedRewards
    from vilavt_toolkit.training.trainable import freeze, try_optimizer

    collect.build("rl.rewards", lambda: WeightedRewards(section.rewards))
    collect.build("rl.advantage", lambda: _made(section.advantage))
    collect.build("rl.policy_loss", lambda: _made(section.policy_loss))
    optimizer = collect.build("rl.optimizer", lambda: _made(section.optimizer))
    if model is None:
        return
    if collect.fits("rl.freeze", lambda: freeze(model, section.frozen, "rl")) and optimizer is not None:
        collect.fits("rl.optimizer", lambda: try_optimizer(optimizer, model, "rl"))


def _made(part: Part) -> Any:
    return part.entry.cls(part.config)


def train(name: str, overrides: Sequence[str], resume: bool) -> None:
    """Train what a recipe says; raises VilavtError."""
    recipe = _read(name, overrides)
    from vilavt_toolkit.training.supervised.run import train as run_training

    run = run_training(recipe, resume)
    _console().print(f"the run is in {run}; evaluate it with: vilavt eval {run}")


def reinforce(name: str, overrides: Sequence[str], resume: bool) -> None:
    """Reinforce the trained run of a recipe; raises VilavtError."""
    recipe = _read(name, overrides)
    from vilavt_toolkit.training.reinforcement.run import reinforce as run_reinforcement

    run = run_reinforcement(recipe, resume)
    _console().print(f"the run is in {run}; evaluate it with: vilavt eval {run}")


def evaluate(run: str, overrides: Sequence[str]) -> None:
    """Evaluate a run, or a recipe's checkpoint, under every arm; writes items, summary and an example.

    Into the run, or the folder that would be the recipe's run. Raises VilavtError.
    """
    from vilavt_toolkit.evaluation.run import evaluate_recipe, evaluate_run

    if not Path(run).is_dir() and (run.endswith((".yaml", ".yml")) or run in recipe_names()):
        evaluate_recipe(_read(run, overrides), _console())
    else:
        evaluate_run(run, overrides, _console())


def export(run: str, to: Path, format: str, dtype: str | None) -> None:
    """Write a model into a folder that other code, or this, loads; raises VilavtError."""
    from vilavt_toolkit.checkpoints.exporting import export as write

    _console().print(f"the {format} model is in {write(run, to, format, dtype)}")


def compare(runs: Sequence[Path], write: Path | None, encoders: bool = False) -> None:
    """Show evaluated runs side by side and, where asked, write the table to a file. Raises VilavtError."""
    from vilavt_toolkit.evaluation import compare as comparison
    from vilavt_toolkit.evaluation import compare_encoders as by_encoder

    table = by_encoder.table(by_encoder.read(runs)) if encoders else comparison.table(comparison.read(runs))
    shown, console = Table(), _console()
    for number, column in enumerate(table.header):
        words = number < table.texts
        shown.add_column(column, justify="left" if words else "right", no_wrap=words)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(table.provenance)
    if write is not None:
        comparison.write(table, write)
        console.print(f"table: {write}")


def compare_stages(runs: Sequence[Path]) -> None:
    """Show what several evaluated runs answer and which zooms they spend on it. Raises VilavtError."""
    from vilavt_toolkit.evaluation import compare_stages as stages

    answered, console = stages.read(runs), _console()
    shown = Table(title="accuracy and needless zooms in % [95% interval]")
    for number, column in enumerate(stages.HEADER):
        shown.add_column(column, justify="left" if number < 2 else "right", no_wrap=number < 2)
    for run in answered:
        shown.add_row(*run.row())
    console.print(shown)
    for line in stages.lines(answered):
        console.print(line)


@dataclass(frozen=True)
class Asked:
    """Which model is asked, and how."""

    model: str
    device: str = "auto"
    dtype: str | None = None
    max_new_tokens: int = 256
    revision: str | None = None
    local_files_only: bool = False


def ask(asked: Asked, images: Sequence[Path], question: str, trace: Path | None, explain: bool = False) -> None:
    """Ask a model about images and print the answer; raises VilavtError."""
    from vilavt_toolkit.chat.ask import ask as ask_model
    from vilavt_toolkit.chat.console import priced
    from vilavt_toolkit.checkpoints.loading import load
    from vilavt_toolkit.report.trace import draw_trace
    from vilavt_toolkit.utils.pictures import check_name

    if trace is not None:
        check_name(trace)
    model = load(asked.model, asked.device, asked.dtype, asked.revision, asked.local_files_only)
    answer = ask_model([str(image) for image in images], question, model=model, max_new_tokens=asked.max_new_tokens)
    console = _console()
    for turn in answer.trace.turns:
        if turn.thought:
            console.print(f"thought: {turn.thought}", style="dim")
        if turn.inquiry or turn.regions:
            console.print(f"inquiry: {turn.inquiry} ({len(turn.regions)} regions)", style="dim")
        if turn.feedback:
            console.print(f"told: {turn.feedback}", style="dim")
    console.print(str(answer), style="bold")
    console.print(f"stopped: {answer.why}; cost: {priced(answer.cost)}", style="dim")
    if trace is not None:
        draw_trace(answer.trace, trace, _explained(answer) if explain else None)
        console.print(f"trace: {trace}")


def chat(
    asked: Asked, images: Sequence[Path], temperature: float, top_p: float, seed: int, grammar: bool, saved: Path | None
) -> int:
    """Hold a conversation over standard input; its exit code. Raises VilavtError where it cannot begin."""
    from vilavt_toolkit.chat.chat import Chat
    from vilavt_toolkit.chat.terminal import converse
    from vilavt_toolkit.checkpoints.loading import load
    from vilavt_toolkit.generation.sampling import Decoding

    decoding = Decoding(asked.max_new_tokens, temperature, seed, top_p, grammar=grammar)
    model = load(asked.model, asked.device, asked.dtype, asked.revision, asked.local_files_only)
    conversation = Chat(model, decoding=decoding)
    if saved is not None:
        conversation = Chat.load(saved, model)
        conversation.decoding = decoding
    for image in images:
        conversation.add(str(image))
    return converse(conversation, asked.model, _console(), Console(stderr=True, markup=False, highlight=False))


def _explained(answer: Answer) -> Mapping[int, Explanation]:
    """The answer's heat maps; none, and why, where there is nothing to show: the answer is still one."""
    try:
        return answer.explain()
    except InputError as error:
        logging.getLogger(__name__).warning(error)
        return {}


def _read(name: str, overrides: Sequence[str]) -> CheckedRecipe:
    recipe = load_recipe(name, overrides)
    for note in recipe.notes:
        logging.getLogger(__name__).warning(note)
    return recipe


_LOG_COLUMNS = 200
"""Width of tables where the output is no terminal, so that no number in a log is cut short."""


def _console() -> Console:
    log = not sys.stdout.isatty()
    width = _LOG_COLUMNS if log and "COLUMNS" not in os.environ else None
    return Console(markup=False, highlight=False, soft_wrap=log, width=width)


def _parts(recipe: CheckedRecipe, model: VisualChatModel) -> Table:
    """The parts of a recipe with their parameters and shapes."""
    section, encoder, language = recipe.recipe.model, model.encoder.encoder, model.language_model
    spec = encoder.spec
    table = Table(title=f"{recipe.name}: {_count(model):,} parameters")
    for column, justify in (("part", "left"), ("name", "left"), ("parameters", "right"), ("shapes", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    widths = sorted({block.width for block in spec.blocks})
    blocks = f"{spec.depth} blocks of width {'/'.join(map(str, widths))}, positions {spec.positions}"
    modulated = ", ".join(model.encoder.modulators) or "none"
    inquiry = model.encoder.inquiry_encoder
    table.add_row("source", section.source.name, "", f"modality {section.source.entry.cls.modality}")
    table.add_row("encoder", section.encoder.name, f"{_count(encoder):,}", blocks)
    names = ", ".join(part.name for part in section.modulator)
    table.add_row("modulator", names, f"{_count(model.encoder.modulators):,}", f"blocks {modulated}")
    if inquiry is not None:
        table.add_row("inquiry encoder", section.inquiry_encoder.name, f"{_count(inquiry):,}", f"width {inquiry.width}")
    widths_in_out = f"{spec.out_width} -> {language.width}"
    table.add_row("projector", section.projector.name, f"{_count(model.projector):,}", widths_in_out)
    shapes = f"width {language.width}, {language.vocab_size:,} tokens, context {language.context_length:,}"
    table.add_row("language model", section.language_model.name, f"{_count(language):,}", shapes)
    steps = model.dialogue.steps
    table.add_row("dialogue", section.dialogue.name, "", f"boxes in {steps} steps" if steps else "boxes in pixels")
    learned = _count(model.stopping)
    table.add_row("stopping", ", ".join(part.name for part in section.stopping), f"{learned:,}" if learned else "", "")
    table.add_row("task", recipe.recipe.task.name, "", "")
    return table


def _count(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())
