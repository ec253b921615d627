"""The console of the commands shows what others wrote; it neither obeys nor changes it."""

from __future__ import annotations

from rich.table import Table

from vilavt_toolkit.utils.console import make_console
from vilavt_toolkit.utils.progress import track_progress

TEXT = "[red]:smile: a\x1b[2J\x9bb"
SHOWN = r"[red]:smile: a\x1b[2J\x9bb"


def test_lines_and_tables_are_printed_as_they_are_with_controls_as_escapes(capsys):
    for stderr in (False, True):
        console = make_console(stderr)
        table = Table.grid()
        table.add_row(TEXT)
        console.print(TEXT, style="bold")
        console.print(table)
    said = capsys.readouterr()
    for stream in said:
        assert [line.strip() for line in stream.splitlines()] == [SHOWN, SHOWN]


def test_a_progress_bar_shows_the_name_of_its_file_likewise(capsys):
    assert list(track_progress(range(2), 2, TEXT)) == [0, 1]
    assert SHOWN in capsys.readouterr().err
