"""Limits of the machine are told in a sentence, by every command; other errors stay what they are."""

from __future__ import annotations

import errno

import pytest
import torch

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.cli import commands
from vilavt_toolkit.errors import InputError, LimitError
from vilavt_toolkit.utils.limits import describe_limit, explained_limits

FILES = OSError(errno.EMFILE, "Too many open files")
TORCH = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes")
THREADS = RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("error", "section", "words"),
    [
        (FILES, "train", "Raise the limit with `ulimit -n 4096`, or lower train.workers."),
        (FILES, "rl", "Raise the limit with `ulimit -n 4096`."),
        (OSError(errno.ENFILE, "Too many open files in system"), "", "Raise the limit with `ulimit -n 4096`."),
        (TORCH, "train", "not enough memory. Lower train.micro_batch, train.pack_tokens or train.workers."),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "rl",
            "not enough memory. Lower rl.micro_batch or rl.pack_tokens.",
        ),
        (MemoryError(), "", "not enough memory. Free some."),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "", "not enough memory. Free some."),
        (
            OSError(errno.ENOSPC, "No space left on device", "logs/a"),
            "",
            "the disk is full at logs/a. Free some space.",
        ),
        (THREADS, "train", "raise the limit with `ulimit -u`."),
    ],
)
def test_a_limit_is_told_with_its_remedy(error, section, words):
    with pytest.raises(LimitError) as told, explained_limits(section):
        raise error
    assert str(told.value).endswith(words) and "\n" not in str(told.value)


def test_a_limit_on_files_is_seen_behind_the_error_that_it_causes():
    with pytest.raises(LimitError, match="ulimit -n"), explained_limits("train"):
        raise InputError("the image a.png cannot be opened.") from FILES
    with pytest.raises(LimitError, match="ulimit -n"), explained_limits("train"):
        try:
            raise FILES
        except OSError:
            raise InputError("the image a.png cannot be opened.") from None


def test_other_errors_stay_what_they_are():
    for error in (OSError(errno.ENOENT, "No such file"), RuntimeError("a defect"), InputError("too large: a.png")):
        assert describe_limit(error, "train") is None
        with pytest.raises(type(error)) as told, explained_limits("train"):
            raise error
        assert told.value is error


@pytest.mark.parametrize("error", [FILES, MemoryError()])
def test_every_command_tells_of_a_limit_without_a_traceback(monkeypatch, capsys, error):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(commands, "export", fail)
    assert cli.run(["export", "run", "--to", "out"]) == 1
    assert capsys.readouterr().err.startswith("LimitError: ")
