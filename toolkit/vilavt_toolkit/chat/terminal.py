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
from vilavt_toolkit.chat.console import Teller, priced
from vilavt_toolkit.chat.events import Answered
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError, UsageError, VilavtError
from vilavt_toolkit.generation.flops import Costs
from vilavt_toolkit.settings import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

_MEMORY = "the memory does not suffice for it; take back questions or images with /undo, or begin anew with /new."


class _Command(NamedTuple):
    arguments: str
    about: str


COMMANDS = {
    "image": _Command("PATH...", "show images with the next question"),
    "trace": _Command("[FILE]", "draw how the last question was answered into a picture"),
    "cost": _Command("", "what the last question cost, and all"),
    "undo": _Command("", "take back the last question, or the images added since"),
    "new": _Command("", "begin anew with the same images"),
    "save": _Command("DIR", "write the conversation into a folder"),
    "load": _Command("DIR", "go on with a conversation that was saved"),
    "help": _Command("", "this list"),
    "exit": _Command("", "leave, as Ctrl-D does"),
}


class Terminal:
    """Reads lines until there are no more, and does what each says; what is wrong with one is told in a sentence."""

    def __init__(self, chat: Chat, console: Console, errors: Console, interactive: bool) -> None:
        self.chat = chat
        self._console, self._errors, self._interactive = console, errors, interactive
        self._teller = Teller(console, chat.model)
        self._costs = Costs(chat.model)
        self._answer: Answer | None = None
        self._spent: list[dict[str, float]] = []
        self._anew: list[float] = []
        """Of every question asked, operations of a loop that keeps nothing."""
        self._before: list[tuple[Chat, Answer | None]] = []
        """What `/undo` goes back to; forks, which hold nothing of their own before they are gone on with."""
        self._code = 0

    def run(self, read: Callable[[], str | None]) -> int:
        """Hold the conversation, `read` giving its lines, at last None; the exit code.

        Over a pipe, that of the first thing that went wrong. A KeyboardInterrupt leaves at once there; in a terminal
        it takes back the question that is being answered, and leaves where it is the second one at the prompt.
        """
        interrupted = False
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                if interrupted or not self._interactive:
                    raise
                interrupted = True
                self._teller.leave()
                self._teller.line("Ctrl-C once more leaves, as Ctrl-D does")
                continue
            interrupted = False
            if line is None and self._interactive:
                self._teller.leave()  # Ctrl-D leaves the cursor behind the prompt
            if line is None or not self._obey(line.strip()):
                return self._code

    def _obey(self, line: str) -> bool:
        """Do what a line says; whether the conversation goes on."""
        try:
            if line.startswith("/"):
                return self._command(line[1:])
            if line:
                self._ask(line)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._teller.leave()
            self._teller.line("taken back")
        except (torch.OutOfMemoryError, MemoryError):
            self._wrong(InputError(_MEMORY))
        except VilavtError as error:
            self._wrong(error)
        return True

    def _wrong(self, error: VilavtError) -> None:
        self._teller.finish()
        self._errors.print(error.report(), style="red", soft_wrap=True)
        if not self._interactive:
            self._code = self._code or error.exit_code

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let the chat change whole, or not at all, and so that it can be undone."""
        before = self.chat.fork()
        try:
            yield
        except BaseException:
            self.chat = before
            raise
        self._before.append((before, self._answer))

    def _ask(self, question: str) -> None:
        self._teller = Teller(self._console, self.chat.model)
        with self._changing(), closing(self.chat.stream(question)) as events:
            for event in events:
                self._teller.tell(event)
        assert isinstance(event, Answered)
        self._answer = event.answer
        self._spent.append(dict(event.answer.cost))
        self._anew.append(_prefilled_anew(self._costs, event.answer.session))

    # --- Commands --------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> bool:
        """Carry out a command; whether the conversation goes on. Raises VilavtError."""
        name, _, rest = line.partition(" ")
        try:
            arguments = shlex.split(rest)
        except ValueError as error:
            raise UsageError(f"/{name}: {rest.strip()} cannot be read ({error}); close the quotes.") from None
        if name not in COMMANDS:
            known = ", ".join(f"/{known}" for known in COMMANDS)
            raise UsageError(f"there is no command /{name}.{did_you_mean(name, tuple(COMMANDS))} There are {known}.")
        _check_arguments(name, arguments)
        if name == "exit":
            return False
        getattr(self, f"_{name}")(*arguments)
        return True

    def _help(self) -> None:
        width = max(len(f"/{name} {command.arguments}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            self._teller.line(f"{f'/{name} {command.arguments}':<{width}}  {command.about}", "")

    def _image(self, *paths: str) -> None:
        with self._changing():
            numbers = [self.chat.add(str(_path(path))) for path in paths]
        for number in numbers:
            self._teller.line(f"image: {self.chat.session.sources[number].name}")

    def _trace(self, file: str = "") -> None:
        if self._answer is None:
            raise UsageError("nothing was answered yet, so there is no trace; ask something first.")
        free = (path for number in count(1) if not (path := Path(f"trace-{number}.png")).exists())
        path = _path(file) if file else next(free)
        self._answer.draw(path)
        self._teller.line(f"trace: {path}")

    def _cost(self) -> None:
        if not self._spent:
            raise UsageError("nothing was asked yet, so nothing was spent; ask something first.")
        names = dict.fromkeys(name for spent in self._spent for name in spent)
        total = {name: sum(spent.get(name, 0) for spent in self._spent) for name in names}
        last, session = self._spent[-1], self.chat.session
        context = self.chat.model.language_model.context_length
        self._teller.line(f"last question: {priced(last)}", "")
        self._teller.line(f"all {len(self._spent)} answered, those taken back too: {priced(total)}", "")
        anew = {"gflops for the last question": self._anew[-1] / 1e9, "for all": sum(self._anew) / 1e9}
        self._teller.line(f"encoding and reading everything again for every turn: {priced(anew)}", "")
        kept = f"{self.chat.kept.bytes / 2**20:,.4g} MiB of keys and values"
        self._teller.line(f"the conversation: {len(session.trajectory.ids)} of {context} tokens, {kept}", "")

    def _undo(self) -> None:
        if not self._before:
            raise UsageError("there is nothing to take back.")
        self.chat, self._answer = self._before.pop()
        self._standing()

    def _new(self) -> None:
        self._go_on(Chat(self.chat.model, self.chat.session.sources, self.chat.decoding))

    def _load(self, folder: str) -> None:
        loaded = Chat.load(_path(folder), self.chat.model)
        loaded.decoding = self.chat.decoding
        self._go_on(loaded)

    def _go_on(self, chat: Chat) -> None:
        """Go on with another chat; what was read of the one before is given back."""
        self.chat, self._answer = chat, None
        self._before.clear()
        self._standing()

    def _save(self, folder: str) -> None:
        path = _path(folder)
        self.chat.save(path)
        self._teller.line(f"saved: {path}; /load, or --load at the start, goes on with it")

    def _standing(self) -> None:
        asked = self.chat.trajectory.questions
        last = f", the last one: {asked[-1].text}" if asked else ""
        self._teller.line(f"images: {len(self.chat.session.sources)}; questions: {len(asked)}{last}")


def _path(name: str) -> Path:
    """A path as it was typed, ~ being one's home; raises InputError for what can be none."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # of a user who is not there
        raise InputError(f"{name} is in the home of nobody known here; write the path out.") from None
    if "\0" in name:
        raise InputError(f"{name!r} can be no path; leave out its null byte.")
    return path


def _check_arguments(name: str, given: list[str]) -> None:
    """Raise UsageError where a command has too few arguments, or too many."""
    wanted = COMMANDS[name].arguments
    least = int(bool(wanted) and not wanted.startswith("["))
    most = len(given) if wanted.endswith("...") else int(bool(wanted))
    if not least <= len(given) <= most:
        needed = f"it is /{name} {wanted}, a name with spaces in quotes" if wanted else "it takes nothing behind it"
        raise UsageError(f"/{name} cannot be meant with {len(given)} names; {needed}.")


def _prefilled_anew(costs: Costs, session: Session) -> float:
    """Operations of the last question where every turn encodes and reads all before it, by the count of `costs`."""
    trajectory = session.trajectory
    starts = [*trajectory.starts[trajectory.questions[-1].turn :], len(trajectory.ids)]
    total = 0.0
    for start, end in pairwise(starts):
        before = [number for number, region in enumerate(trajectory.regions) if region.start < start]
        shown = [session.views[number] for number in before], [trajectory.regions[number].group for number in before]
        written = sum(trajectory.produced[start:end])
        total += costs.views(*shown).flops + costs.reading(start, 0)
        total += costs.reading(written - 1, start, written - 1)
    return total


def lines(interactive: bool) -> Callable[[], str | None]:
    """What reads the lines of standard input, edited and remembered in a terminal where there is readline."""
    # A byte that is no text is then the question's own fault, told with it, and the next line is read.
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")
    if not interactive:
        return lambda: sys.stdin.readline() or None
    with suppress(ImportError):  # not every system has it
        import readline  # noqa: F401 - input() edits lines once it is there

    def typed() -> str | None:
        try:
            return input("> ")
        except EOFError:
            return None

    return typed


def converse(chat: Chat, name: str, console: Console, errors: Console) -> int:
    """Hold a conversation over standard input; the exit code."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        images = len(chat.session.sources)
        console.print(f"{name}; images: {images}; /help lists commands, Ctrl-D leaves", style="dim", soft_wrap=True)
    return Terminal(chat, console, errors, interactive).run(lines(interactive))
