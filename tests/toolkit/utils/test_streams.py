"""Standard streams that are closed, full, unread or of a narrow encoding end no command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vilavt_toolkit.utils.streams import GuardedStream

ROOT = Path(__file__).parents[3]
PATHS = f"import sys; sys.path.insert(0, {str(ROOT / 'toolkit')!r})"
MAIN = f"{PATHS}; from vilavt_toolkit.cli.program import main; main({{}})"
LONG = f"""{PATHS}
from vilavt_toolkit.cli import app, program
from vilavt_toolkit.utils.console import make_console
app.run = lambda arguments: [make_console().print("x" * 99) for _ in range(9999)] and 0
program.main([])"""


def run_main(arguments: list[str], shell: str) -> tuple[int, str]:
    """Run a command under `shell` redirections; its exit code, and what stood on standard error."""
    command = f'"$0" -c "$1" {shell}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, MAIN.format(arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", r"\xe9\u2588a"), ("cp1252", "é\\u2588a"), ("utf-8", "é█a")]
)
def test_what_an_encoding_lacks_is_written_as_an_escape(encoding: str, written: str) -> None:
    data = io.BytesIO()
    stream = GuardedStream.from_stream(io.TextIOWrapper(data, encoding=encoding))
    stream.write("é█a")
    stream.flush()
    assert data.getvalue().decode(encoding) == written


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_command(closed: str) -> None:
    assert run_main(["--help"], closed) == (0, "")
    assert run_main(["train"], closed)[0] == 2


def test_a_full_device_is_told_in_one_sentence() -> None:
    code, said = run_main(["--help"], "> /dev/full")
    assert code == 1
    assert said == (
        "RunError: standard output cannot be written (No space left on device). Make room, or send it elsewhere.\n"
    )
    assert run_main(["--help"], "> /dev/full 2> /dev/full") == (1, "")
    assert run_main(["train"], "2> /dev/full") == (2, "")


def test_a_pipe_that_nobody_reads_to_its_end_is_no_error() -> None:
    script = '"$0" -c "$1" | head -c 9; echo " ${PIPESTATUS[0]}"'
    done = subprocess.run(["bash", "-c", script, sys.executable, LONG], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("xxxxxxxxx 141\n", "")


def test_after_a_failure_the_rest_is_dropped_and_work_goes_on() -> None:
    reading, writing = os.pipe()
    stream = GuardedStream.from_stream(os.fdopen(writing, "w"))
    os.close(reading)
    for _ in range(3):
        assert stream.write("x" * 99_999) == 99_999
        stream.flush()
    assert isinstance(stream.failure, BrokenPipeError)
    stream.close()
