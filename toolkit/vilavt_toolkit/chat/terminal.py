"""A conversation in a terminal, or over a pipe: a line is a question, or a command that begins with a slash."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from vilavt_toolkit.chat.answer import Answer
from vilavt_toolkit.chat.chat import Chat
from vilavt_toolkit.chat.console import ConsolePrinter, format_cost
from vilavt_toolkit.chat.events import Answered
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError, UsageError, VilavtError
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.settings import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

_MEMORY = (
    "the device has too little memory for this. Type /undo to take back questions or images, or /new to start again."
)


class _Command(NamedTuple):
    arguments: str
    about: str


COMMANDS = {
    "image": _Command("PATH...", "show images with the next question"),
    "trace": _Command("[FILE]", "draw how the last question was answered, into a picture"),
    "cost": _Command("", "show what the last question cost, and all questions"),
    "undo": _Command("", "take back the last question, or the images added since"),
    "new": _Command("", "start again with the same images"),
    "save": _Command("DIR", "write the conversation into a folder"),
    "load": _Command("DIR", "go on with a saved conversation"),
    "help": _Command("", "show this list"),
    "exit": _Command("", "leave, as Ctrl-D does"),
}


class Terminal:
    """Reads lines and carries out each of them; an error is printed, and the conversation goes on."""

    def __init__(self, chat: Chat, console: Console, errors: Console, interactive: bool) -> None:
        self.chat = chat
        self._console, self._errors, self._interactive = console, errors, interactive
        self._printer = ConsolePrinter(console, chat.model)
        self._costs = CostCounter(chat.model)
        self._answer: Answer | None = None
        self._spent: list[dict[str, float]] = []
        self._uncached: list[float] = []
        """FLOPs of every question in a loop without any cache."""
        self._undo_stack: list[tuple[Chat, Answer | None]] = []
        """States that `/undo` goes back to: forks, which take no memory of their own until the chat goes on."""
        self._exit_code = 0

    def run_lines(self, read: Callable[[], str | None]) -> int:
        """Carry out the lines that `read` gives until it gives None, and return the exit code.

        The exit code is that of the first error over a pipe, and 0 in a terminal. A KeyboardInterrupt ends a pipe at
        once. In a terminal it takes back the question that is being answered; at the prompt, the second one leaves.
        """
        interrupted = False
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                if interrupted or not self._interactive:
                    raise
                interrupted = True
                self._printer.break_line()
                self._printer.print_line("Ctrl-C once more leaves, as Ctrl-D does")
                continue
            interrupted = False
            if line is None and self._interactive:
                self._printer.break_line()  # after Ctrl-D the cursor still stands at the prompt
            if line is None or not self._handle_line(line.strip()):
                return self._exit_code

    def _handle_line(self, line: str) -> bool:
        """Carry out a line; return False if the conversation is over."""
        try:
            if line.startswith("/"):
                return self._run_command(line[1:])
            if line:
                self._ask_question(line)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._printer.break_line()
            self._printer.print_line("taken back")
        # The question was taken back by then, so its memory is free again.
        except (torch.OutOfMemoryError, MemoryError):
            self._print_error(InputError(_MEMORY))
        except VilavtError as error:
            self._print_error(error)
            if not line.startswith("/"):
                self._warn_of_full_context()
        return True

    def _print_error(self, error: VilavtError) -> None:
        self._printer.end_line()
        self._errors.print(error.report(), style="red", soft_wrap=True)
        if not self._interactive:
            self._exit_code = self._exit_code or error.exit_code

    def _warn_of_full_context(self) -> None:
        """Tell of `/new` if a question like the last one would hardly fit into the context any more."""
        session, total = self.chat.session, self.chat.model.language_model.context_length
        questions = session.trajectory.questions
        if not questions:
            return
        # The loop carries out a call only if it leaves room for an answer, an eighth of a short context.
        wanted = len(session.trajectory.ids) - questions[-1].start + total // 8
        if session.tokens_left < wanted:
            self._printer.print_line(
                f"{session.tokens_left} of {total} tokens of the context are left, too few for another such question. "
                "/new starts a new conversation with the same images."
            )

    @contextmanager
    def _change_chat(self) -> Iterator[None]:
        """Make a change of the chat that can be undone; if it fails, the chat is as it was before."""
        # A fork shares the KV cache with the chat, so keeping it costs nothing until one of them is written to.
        before = self.chat.fork()
        try:
            yield
        except BaseException:
            self.chat = before
            raise
        self._undo_stack.append((before, self._answer))

    def _ask_question(self, question: str) -> None:
        self._printer = ConsolePrinter(self._console, self.chat.model)
        with self._change_chat(), closing(self.chat.stream(question)) as events:
            for event in events:
                self._printer.print_event(event)
        assert isinstance(event, Answered)
        self._answer = event.answer
        self._spent.append(dict(event.answer.cost))
        self._uncached.append(_uncached_flops(self._costs, event.answer.session))
        self._warn_of_full_context()

    # --- Commands --------------------------------------------------------------------------------------------------

    def _run_command(self, line: str) -> bool:
        """Carry out a command; return False if the conversation is over. Raises VilavtError."""
        name, _, rest = line.partition(" ")
        try:
            arguments = shlex.split(rest)
        except ValueError as error:
            raise UsageError(f"/{name}: {rest.strip()} cannot be read ({error}). Close the quotes.") from None
        if name not in COMMANDS:
            known = ", ".join(f"/{known}" for known in COMMANDS)
            raise UsageError(f"there is no command /{name}.{did_you_mean(name, tuple(COMMANDS))} There are {known}.")
        _check_arguments(name, arguments)
        if name == "exit":
            return False
        # Each command has its method, `_run_` and its name; the names were checked above.
        getattr(self, f"_run_{name}")(*arguments)
        return True

    def _run_help(self) -> None:
        width = max(len(f"/{name} {command.arguments}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            self._printer.print_line(f"{f'/{name} {command.arguments}':<{width}}  {command.about}", "")

    def _run_image(self, *paths: str) -> None:
        with self._change_chat():
            numbers = [self.chat.add(str(_parse_path(path))) for path in paths]
        for number in numbers:
            self._printer.print_line(f"image: {self.chat.session.sources[number].name}")

    def _run_trace(self, file: str = "") -> None:
        if self._answer is None:
            raise UsageError("nothing was answered yet, so there is no trace. Ask a question first.")
        free = (path for number in count(1) if not (path := Path(f"trace-{number}.png")).exists())
        path = _parse_path(file) if file else next(free)
        self._answer.draw(path)
        self._printer.print_line(f"trace: {path}")

    def _run_cost(self) -> None:
        if not self._spent:
            raise UsageError("nothing was asked yet, so nothing was spent. Ask a question first.")
        # Not all questions have the same costs: tokens of probes are counted only if there were probes.
        names = dict.fromkeys(name for spent in self._spent for name in spent)
        total = {name: sum(spent.get(name, 0) for spent in self._spent) for name in names}
        last, session = self._spent[-1], self.chat.session
        context = self.chat.model.language_model.context_length
        self._printer.print_line(f"last question: {format_cost(last)}", "")
        self._printer.print_line(f"all {len(self._spent)} answered, those taken back too: {format_cost(total)}", "")
        uncached = {"gflops for the last question": self._uncached[-1] / 1e9, "for all": sum(self._uncached) / 1e9}
        self._printer.print_line(f"encoding and reading everything again for every turn: {format_cost(uncached)}", "")
        memory = f"{self.chat.cached_prefix.bytes / 2**20:,.4g} MiB of KV cache"
        self._printer.print_line(f"the conversation: {len(session.trajectory.ids)} of {context} tokens, {memory}", "")

    def _run_undo(self) -> None:
        if not self._undo_stack:
            raise UsageError("there is nothing to take back. Ask a question or add an image first.")
        self.chat, self._answer = self._undo_stack.pop()
        self._print_state()

    def _run_new(self) -> None:
        self._switch_chat(Chat(self.chat.model, self.chat.session.sources, self.chat.decoding))

    def _run_load(self, folder: str) -> None:
        loaded = Chat.load(_parse_path(folder), self.chat.model)
        # What was set on the command line holds for the whole conversation, whatever the saved chat was asked with.
        loaded.decoding = self.chat.decoding
        self._switch_chat(loaded)

    def _switch_chat(self, chat: Chat) -> None:
        """Go on with another chat, and free the memory of the present one."""
        self.chat, self._answer = chat, None
        self._undo_stack.clear()
        self._print_state()

    def _run_save(self, folder: str) -> None:
        path = _parse_path(folder)
        self.chat.save(path)
        self._printer.print_line(f"saved: {path} (go on with it by /load, or --load at the start)")

    def _print_state(self) -> None:
        questions = self.chat.trajectory.questions
        last = f", the last one: {questions[-1].text}" if questions else ""
        self._printer.print_line(f"images: {len(self.chat.session.sources)}; questions: {len(questions)}{last}")


def _parse_path(name: str) -> Path:
    """Return a typed path with `~` expanded; raises InputError if it cannot be a path."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # `~name` of a user that does not exist
        raise InputError(f"{name} is in the home of an unknown user. Write the whole path.") from None
    if "\0" in name:
        raise InputError(f"{name!r} cannot be a path. Leave out its null byte.")
    return path


def _check_arguments(name: str, given: list[str]) -> None:
    """Raise UsageError if a command has too few arguments, or too many."""
    wanted = COMMANDS[name].arguments
    # The text of the help is the one description of the arguments: `[X]` may be missing, `X...` may be repeated.
    least = int(bool(wanted) and not wanted.startswith("["))
    most = len(given) if wanted.endswith("...") else int(bool(wanted))
    if not least <= len(given) <= most:
        usage = f"/{name} {wanted}, a name with spaces in quotes" if wanted else f"/{name} alone"
        raise UsageError(f"/{name} does not take {len(given)} names. Type {usage}.")


def _uncached_flops(costs: CostCounter, session: Session) -> float:
    """Return the FLOPs of the last question if every turn encoded and read everything before it again.

    This is what a loop without a KV cache costs, by the same count as the true cost, so that the two compare.
    """
    trajectory = session.trajectory
    starts = [*trajectory.starts[trajectory.questions[-1].turn :], len(trajectory.ids)]
    total = 0.0
    for start, end in pairwise(starts):
        before = [number for number, region in enumerate(trajectory.regions) if region.start < start]
        shown = [session.views[number] for number in before], [trajectory.regions[number].group for number in before]
        written = sum(trajectory.produced[start:end])
        # The first token of a turn comes from reading the prompt, so one less is read after it.
        total += costs.encoding_cost(*shown).flops + costs.reading_flops(start, 0)
        total += costs.reading_flops(written - 1, start, written - 1)
    return total


def make_line_reader(interactive: bool) -> Callable[[], str | None]:
    """Return a function that reads a line of standard input, None at its end.

    In a terminal, lines can be edited and recalled if Python has readline.
    """
    # A byte that is no text becomes half a surrogate, which the question is refused for. The next line is read then.
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")
    if not interactive:
        return lambda: sys.stdin.readline() or None
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - once imported, input() edits lines

    def read_typed_line() -> str | None:
        try:
            return input("> ")
        except EOFError:
            return None

    return read_typed_line


def run_terminal(chat: Chat, name: str, console: Console, errors: Console) -> int:
    """Hold a conversation over standard input, and return the exit code."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        images = len(chat.session.sources)
        console.print(f"{name}; images: {images}; /help lists commands, Ctrl-D leaves", style="dim", soft_wrap=True)
    return Terminal(chat, console, errors, interactive).run_lines(make_line_reader(interactive))
