"""What each reader makes of an answer, to the letter."""

from fractions import Fraction

import pytest

from vilavt_components.common.answers import reading
from vilavt_components.common.answers.reading import (
    is_same_number,
    is_same_text,
    label_options,
    normalise_text,
    read_choice,
    read_moves,
    read_number,
    read_yes_no,
)

HALF = Fraction(1, 2)
QUARTER = Fraction(1, 4)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Red  SQUARE. ", "red square"),
        ("\uff22", "b"),
        ("'b'", "b"),
        ('"B."', "b"),
        ("\\boxed{B}.", "b"),
        ("$\\boxed{x}$", "x"),
        ("$x$", "x"),
        ("$x", "$x"),
        ("x$", "x$"),
        ("$$", "$$"),
        (".", "."),
        ("a.", "a"),
        ("a..", "a.."),
        ("e\u0301", "\u00e9"),
        ("\u22128", "-8"),
        ("1\u20442", "1/2"),
        ("3\u00bd", "3 1/2"),
        ("10\u00b2", "10\u00b2"),
        ("x\u2081", "x\u2081"),
        ("stra\u00dfe", "strasse"),
    ],
)
def test_a_text_is_reduced_to_what_it_says(text, plain):
    assert normalise_text(text) == plain


def test_texts_of_which_nothing_is_left_are_compared_as_they_stand():
    assert is_same_text('""', ' ""')
    assert not is_same_text('""', "''")
    assert not is_same_text("a", '""')


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("17", Fraction(17)),
        ("+ 5", Fraction(5)),
        ("- 5", Fraction(-5)),
        ("1,234.5", Fraction(2469, 2)),
        ("1e3", Fraction(1000)),
        ("1.5e-2", Fraction(3, 200)),
        ("1.5e2/3", Fraction(50)),
        ("1e+2", Fraction(100)),
        ("3/4", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("2\\frac{1}{2}", Fraction(5, 2)),
        ("\\dfrac34", Fraction(3, 4)),
        ("\\tfrac{1.5}{3}", HALF),
        ("0/7", Fraction(0)),
    ],
)
def test_a_number_is_read_exactly(text, value):
    assert read_number(text) == (value, False)


@pytest.mark.parametrize(
    ("text", "value"), [("50%", HALF), ("12.5 %", Fraction(1, 8)), ("50\\%", HALF), ("3/4%", Fraction(3, 400))]
)
def test_a_percentage_is_a_hundredth_and_says_so(text, value):
    assert read_number(text) == (value, True)


@pytest.mark.parametrize("text", ["", "-", "1e1000", "7/0", "1 2", "1/2/3", "--1", "1%%", "1,23", "\\frac{1}{}", "x"])
def test_what_is_no_number_is_none(text):
    assert read_number(text) is None


def test_a_text_of_a_thousand_characters_is_read_and_a_longer_one_is_not():
    assert read_number("1".rjust(1000)) == (1, False)
    assert read_number("1".rjust(1001)) is None
    assert read_choice("b".rjust(1000), ()) == "b"
    assert read_choice("b".rjust(1001), ()) is None
    assert read_moves("up:1".rjust(1000), {"up"}) == {"up": 1}
    assert read_moves("up:1".rjust(1001), {"up"}) is None


@pytest.mark.parametrize(
    ("truth", "found", "same"),
    [
        ((QUARTER, True), (Fraction(25), False), True),
        ((QUARTER, True), (QUARTER, False), True),
        ((QUARTER, True), (Fraction(25), True), False),
        ((Fraction(25), False), (QUARTER, True), False),
        ((QUARTER, False), (Fraction(25), False), False),
        ((QUARTER, True), (Fraction(26), False), False),
    ],
)
def test_only_a_percentage_may_be_written_without_its_sign(truth, found, same):
    assert is_same_number(truth, found) is same


@pytest.mark.parametrize(("value", "same"), [("11", True), ("9", True), ("11.001", False), ("8.999", False)])
def test_the_tolerance_is_a_share_of_the_truth_to_both_sides(value, same):
    for sign in (1, -1):
        truth, found = (Fraction(10) * sign, False), (Fraction(value) * sign, False)
        assert is_same_number(truth, found, 0.1) is same


def test_yes_and_no_have_two_spellings_each():
    assert [read_yes_no(text) for text in ("Yes.", "TRUE", "no", " False", "1", "")] == [
        True,
        True,
        False,
        False,
        None,
        None,
    ]


def test_a_letter_counts_if_there_is_such_an_option():
    options = ["red", "blue", "green"]
    assert [read_choice(letter, options) for letter in ("a", "(C)", "D")] == ["a", "c", None]
    assert read_choice("z", ()) == "z"
    assert read_choice("b. red", ()) is None


def test_letters_before_options_are_left_out_only_if_every_option_has_its_own():
    assert read_choice("red", ["A. red", "B. blue"]) == "a"
    assert read_choice("red", ["A. red", "blue"]) is None
    assert read_choice("A. red", ["A. red", "blue"]) == "a"
    assert read_choice("red", ["B. red", "A. blue"]) == "b", "letters without a gap are letters in any order"
    assert read_choice("lincoln", ["T. Roosevelt", "A. Lincoln"]) is None, "these are initials"
    assert read_choice("(b) blue", ["(A) red", "(B) blue"]) == "b"
    assert read_choice("(c) blue", ["(A) red", "(B) blue"]) is None
    assert read_choice("c. blue", ["red", "blue"]) is None


@pytest.mark.parametrize("text", ["up:1,up:2", "up:1%", "up", "up:", "down:1", ":1", "up:1,"])
def test_what_is_no_list_of_moves_is_none(text):
    assert read_moves(text, {"up", "left"}) is None


def test_moves_are_read_in_any_order_and_exactly():
    assert read_moves(" LEFT : 1/2 , up:-20 ", {"up", "left"}) == {"left": HALF, "up": Fraction(-20)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"1.6\times 10^{-19}", Fraction(16, 10**20)),
        ("1.6 \u00d7 10\u207b\u00b9\u2079", Fraction(16, 10**20)),
        (r"-2\cdot10^3", Fraction(-2000)),
        ("3*10**2", Fraction(300)),
        ("10^{-2}", Fraction(1, 100)),
        ("$18.90", Fraction(189, 10)),
        (r"\$18.90", Fraction(189, 10)),
        ("-$5", Fraction(-5)),
        ("$1,200.5$", Fraction(12005, 10)),
        ("9/2", Fraction(9, 2)),
    ],
)
def test_powers_of_ten_and_amounts_of_dollars_are_numbers(text, value):
    assert read_number(text) == (value, False)


@pytest.mark.parametrize("text", ["2^{10}", r"10^{x}", "$", "$$5", "1.6x", "10^99999", "5$5"])
def test_what_only_looks_like_one_is_no_number(text):
    assert read_number(text) is None


def test_options_keep_the_letters_before_them_if_these_ascend():
    assert label_options(["B. bee", "C. sea", "F. eff"]) == {"b": "bee", "c": "sea", "f": "eff"}
    assert label_options(["red", "blue"]) == {"a": "red", "b": "blue"}
    assert label_options(["J. Smith", "A. Brown"]) == {"a": "j. smith", "b": "a. brown"}
    assert label_options([]) == {}
    assert read_choice("B", ["B. bee", "C. sea"]) == read_choice("bee", ["B. bee", "C. sea"]) == "b"
    assert read_choice("A", ["B. bee", "C. sea"]) is None


@pytest.mark.parametrize("text", ['"' * 5000 + "B", "." * 5000, "\\boxed{" * 3000 + "}" * 3000, "$" * 9999])
def test_frames_around_an_answer_are_removed_a_bounded_number_of_times(text, monkeypatch):
    class Counted:
        calls = 0

        def fullmatch(self, plain):
            Counted.calls += 1

    monkeypatch.setattr(reading, "_BOXED", Counted())
    normalise_text(text)
    assert Counted.calls <= 100
