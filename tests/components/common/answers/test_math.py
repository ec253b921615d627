"""Answers of kind `math`: what is equal, and that no answer keeps a comparison from ending."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from vilavt_components.common.answers import math as _math
from vilavt_components.common.answers.math import is_same_value
from vilavt_toolkit.errors import InputError


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("0.5", "1/2"),
        ("0.5", "50\\%"),
        ("\\frac{1}{2}", "\\boxed{\\frac12}"),
        ("3/2", "1\\frac{1}{2}"),
        ("3", "x = 3"),
        ("x=3", "3"),
        ("30", "\\theta = 30"),
        ("300000000", "3 \\times 10^8"),
        ("1024", "2^{10}"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("x^2-1", "$(x-1)(x+1)$"),
        ("\\pi/2", "\\frac{\\pi}{2}"),
        ("\\{1, 2\\}", "2, 1"),
        ("y = 2x + 1", "y = 1 + 2x"),
        ("x > 3", "3 < x"),
        ("12", "12\\text{ cm}"),
        ("No solution", "no solution."),
        ("90", "90\u00b0"),
        ("90\u00b0", "90^\\circ"),
        ("90^{\\circ}", "90"),
        ("1000", "1{,}000"),
        ("1000000", "1\\,000\\,000"),
        ("1000", "1\u202f000"),
        ("-5", "\u20135"),
        ("-\\frac{1}{2}", "\\frac{1}{-2}"),
        ("\u20ac18.90", "18.9"),
        ("18.90", "\u00a318.90"),
        ("5", "5 cm"),
        ("5\\text{ cm}", "5 cm"),
        ("5\\text{ cm}^2", "5\\text{ cm}^{2}"),
    ],
)
def test_what_is_always_equal_is_right(truth, answer):
    assert is_same_value(truth, answer)


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("11/2", "1\\frac{1}{2}"),
        ("0.333333", "1/3"),
        ("2x", "2y"),
        ("(1, 2)", "(2, 1)"),
        ("x = 3", "y = 3"),
        ("x > 3", "x \\ge 3"),
        ("\\sqrt{2}", "-\\sqrt{2}"),
        ("\\pi", "3.14"),
        ("5", "five apples"),
        ("5 cm", "5 m"),
        ("5\\text{ cm}", "5\\text{ m}"),
        ("5\\text{ cm}^2", "5\\text{ cm}^3"),
        ("\u20ac5", "\u00a35"),
        ("\\$5", "\u20ac5"),
        ("90\u00b0", "\\frac{\\pi}{2}"),
        ("1000", "1{,}00"),
        ("12", "1\\,2"),
        ("10^{-20} < x < 1", "10^{-30} < x < 1"),
        ("5", ""),
        ("5", "\\frac{"),
        ("x", "{" * 200 + "x" + "}" * 200),
    ],
)
def test_what_is_not_equal_is_wrong(truth, answer):
    assert not is_same_value(truth, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "3, 4",
        "4, 3",
        "3 or 4",
        "3 4",
        "x = 3, x = 4",
        "4=3",
        "3} and \\boxed{4",
        "\\boxed{4} \\boxed{3}",
        "4 $ or $ 3",
        "\\( 4 \\) \\( 3 \\)",
        "3 \\pm 1",
        "the answer is 3",
    ],
)
def test_several_guesses_are_none(answer):
    assert not is_same_value("3", answer)


@pytest.mark.parametrize("answer", ["17 \\times 23", "17*23", "390 + 1", "\\sum_{i=1}^{391} 1", "\\int_0^{391} 1 dx"])
def test_a_problem_is_not_its_own_answer(answer):
    assert not is_same_value("391", answer)


def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_is_compared(monkeypatch):
    monkeypatch.setattr(_math, "_SECONDS", 1)
    assert not is_same_value("x^2", "x^{9^{9^{9^9}}}")
    assert is_same_value("z+1", "1+z")


def test_a_signal_to_this_programs_group_does_not_end_the_comparing_process():
    assert is_same_value("y+1", "1+y")
    worker = _math._worker_of_process(os.getpid())._process
    assert worker is not None and os.getpgid(worker.pid) != os.getpgid(0)


def test_answers_are_compared_in_threads_without_touching_signals():
    before, found = signal.getsignal(signal.SIGALRM), []
    pairs = [(f"{number} x + 1", f"1 + {number} x") for number in range(2, 6)]
    threads = [threading.Thread(target=lambda pair=pair: found.append(is_same_value(*pair))) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_library_is_loaded_only_beside_the_program_that_compares_which_a_forked_process_leaves_to_its_parent():
    code = (
        "import os, sys\n"
        "from vilavt_components.common.answers import math\n"
        "assert math.is_same_value('sqrt(8)', '2sqrt(2)')\n"
        "assert not {'math_verify', 'sympy'} & set(sys.modules), 'loaded'\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert math._worker_of_process(os.getpid())._process.poll() is None, 'the child has ended it'\n"
    )
    paths = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
    # Left behind, the process that compares would keep the pipe open, and `run` waiting.
    subprocess.run([sys.executable, "-c", paths + code], check=True, capture_output=True, timeout=300)


def test_without_the_library_the_error_says_what_to_install(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import json; print(json.dumps(\"No module named 'math_verify'\"))")
    monkeypatch.setattr(_math, "_WORKER", worker)
    _math._worker_of_process.cache_clear()
    try:
        with pytest.raises(InputError, match=r"need the library math-verify .*pip install math-verify"):
            is_same_value("w+1", "1+w")
    finally:
        _math._worker_of_process.cache_clear()


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (r"1.6\times 10^{-19}", r"9.1\times 10^{-31}"),
        (r"\frac{-1}{2^{99}}", r"\frac{1}{2^{99}}"),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
        (r"\sqrt{2}\times 10^{-9}", r"\sqrt{3}\times 10^{-9}"),
        (r"(1,\frac{1}{10^{9}})", r"(1,\frac{2}{10^{9}})"),
        (r"e^{-50}", r"e^{-60}"),
        (r"1+10^{-20}", r"1+10^{-19}"),
        (r"2^{20000}", r"4^{10001}"),
    ],
)
def test_very_small_values_are_compared_relative_to_the_truth(truth, answer):
    assert not is_same_value(truth, answer)
    assert is_same_value(truth, truth)


@pytest.mark.parametrize(
    ("truth", "answer", "other"),
    [
        (r"(-\infty,3]", r"(-\infty, 3]", r"(-\infty, 4]"),
        (r"[2,\infty)", r"[2, +\infty)", r"[2, 10^{30})"),
        (r"(-\infty,1)\cup(2,\infty)", r"(-\infty, 1) \cup (2, \infty)", r"(-\infty, 1) \cup (3, \infty)"),
        (r"\infty", r"+\infty", r"-\infty"),
    ],
)
def test_infinity_equals_itself_alone(truth, answer, other):
    assert is_same_value(truth, answer)
    assert not is_same_value(truth, other)
