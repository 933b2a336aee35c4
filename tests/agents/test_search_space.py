"""Constants are found by parsing alone and changed without touching anything around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agents.search_space import (
    Choices,
    Constant,
    Domain,
    Literal,
    Range,
    find,
    render,
    replace,
    tidy,
    tunable,
)
from controller.core.errors import AgentError

HEAD = "OUTSIDE = 1\n# --- tunable constants -------\n"
TAIL = "# --- end of tunable constants -------\nAFTER = 2\n"


def one(line: str) -> Constant:
    found = find(HEAD + line + "\n" + TAIL)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("line", "value", "domain"),
    [
        ("X = 0.04  # Muon. range: 1e-2..1e-1 log", 0.04, Range(0.01, 0.1, log=True)),
        ("X = 0.2  # range: 0.0..0.4", 0.2, Range(0.0, 0.4)),
        ("X = -1.5  # range: -2..-1", -1.5, Range(-2.0, -1.0)),
        ("X: float = 3e-4", 3e-4, Range(3e-4 / 4, 4 * 3e-4, log=True)),
        ("X = 0.875", 0.875, Range(0.5, 0.96875)),
        ("X = -4.0", -4.0, Range(-16.0, -1.0)),
        ("X = 2**16", 65536, Choices((32768, 65536, 131072))),
        ("X = 3 * 2**4", 48, Range(24, 96, log=True)),
        ("X = 6", 6, Range(3, 12)),
        ("X = 1", 1, Range(1, 2)),
        ("X = 4  # blocks. choices: 2, 4, 6", 4, Choices((2, 4, 6))),
        ("X = 5  # choices: 6, 2, 2.5", 5, Choices((2, 5, 6))),
        ("X = 0.5  # choices: 1, 0.25", 0.5, Choices((0.25, 0.5, 1.0))),
        ('X = "L"  # choices: "SL", \'SSL\', L', "L", Choices(("L", "SL", "SSL"))),
        ("X = True", True, Choices((False, True))),
        ("X = False  # range: 1..2", False, Choices((False, True))),
        # a hint that does not hold the present value is widened; one that says nothing is passed over
        ("X = 0.5  # range: 0.6..0.9", 0.5, Range(0.5, 0.9)),
        ("X = 4  # range: 4..4", 4, Choices((2, 4, 8))),
        ("X = 0.0  # range: 0..0.1 log", 0.0, Range(0.0, 0.1)),
        ("X = 7  # range: 1e999..1", 7, Range(3, 14)),
        # nothing is known about these
        ('X = "relu"', "relu", None),
        ("X = 0", 0, None),
        ("X = 0.0", 0.0, None),
        ('X = "relu"  # choices: "relu"', "relu", None),
    ],
)
def test_value_and_domain(line: str, value: Literal, domain: Domain | None) -> None:
    constant = one(line)
    assert (constant.name, constant.value, constant.domain) == ("X", value, domain)
    assert type(constant.value) is type(value)


@pytest.mark.parametrize(
    "line",
    [
        "X = (0.8, 0.95)",
        "X = None",
        "X = f(3)",
        "X = Y",
        "X, Y = 1, 2",
        "X.y = 1",
        "X += 1",
        "X = 1e999",
        "X = 9**9**9",
        "X = 2**2000",
        "X = 1 / 2",
        "X = b'a'",
        "if True: X = 1",
        "X: int",
    ],
)
def test_what_is_no_constant_is_passed_over(line: str) -> None:
    assert find(HEAD + line + "\n" + TAIL) == []


@pytest.mark.parametrize(
    ("line", "hinted"),
    [
        ("X = 2  # range: 1..4", True),
        ("X = 2  # choices: 1, 2", True),
        ("X = 2  # rows", False),
        ("X = 2", False),
    ],
)
def test_whether_the_author_gave_a_hint(line: str, hinted: bool) -> None:
    assert one(line).hinted is hinted


def test_only_the_marked_section_counts() -> None:
    assert [constant.name for constant in find(HEAD + "A = 1\nB = 2\nA = 3\n" + TAIL)] == ["A", "B"]
    assert find(HEAD + "A = 1\nA = 3\n" + TAIL)[0].value == 3


@pytest.mark.parametrize(
    "source",
    [
        "A = 1\n",
        HEAD + "A = 1\n",
        TAIL + HEAD,
        'A = """\n# --- tunable constants ---\n# --- end of tunable constants ---\n"""\n',
        HEAD + "A = \n" + TAIL,
        HEAD + "A = 1\0\n" + TAIL,
        HEAD + "A = (" * 500 + TAIL,
        "",
    ],
)
def test_without_a_readable_section_it_says_so_in_one_sentence(source: str) -> None:
    with pytest.raises(AgentError, match=r"^train\.py [^\n]*$"):
        find(source)


def test_names_of_the_other_scale_and_seeds_are_not_tuned() -> None:
    source = HEAD + "A_CPU = 1\nA_GPU = 2\nB = 3\nSEED = 4\nDATA_SEED = 5\nSEEDLING = 6\nC = 'text'\n" + TAIL
    assert [constant.name for constant in tunable(find(source), "cpu")] == ["A_CPU", "B", "SEEDLING"]
    assert [constant.name for constant in tunable(find(source), "gpu")] == ["A_GPU", "B", "SEEDLING"]


def test_replacing_touches_the_literals_alone() -> None:
    source = (
        HEAD
        + "é = 'ü'; A = 2**16      # ✓ tokens, not 2**16\n"
        + "B=(\n    0.04\n)  # range: 1..2\r\n"
        + "C: float = -1.5\n"
        + 'D = "a"  # choices: "a", "b"\n'
        + TAIL
    )
    after = replace(source, {"A": 1024, "B": 3e-4, "C": 2.0, "D": "b"})
    expected = source.replace("A = 2**16", "A = 1024").replace("    0.04", "    3e-4")
    assert after == expected.replace("-1.5", "2.0").replace('"a"  ', '"b"  ')
    assert replace(source, {"A": 65536, "C": -1.5}) == source
    assert replace(source, {}) == source


def test_a_literal_over_several_lines_becomes_one_line() -> None:
    source = HEAD + "A = (2 *\n  3)  # a\nB = 1\n" + TAIL
    assert replace(source, {"A": 7, "B": 2}) == HEAD + "A = (7)  # a\nB = 2\n" + TAIL


def test_an_equal_number_of_another_type_is_another_literal() -> None:
    assert replace(HEAD + "A = 1\n" + TAIL, {"A": True}) == HEAD + "A = True\n" + TAIL


def test_replacing_an_unknown_name_is_refused() -> None:
    with pytest.raises(AgentError, match="OUTSIDE"):
        replace(HEAD + TAIL, {"OUTSIDE": 2})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "3e-4"),
        (1e-3, "1e-3"),
        (0.04, "0.04"),
        (0.031, "0.031"),
        (15.0, "15.0"),
        (1e4, "1e4"),
        (-2.5e-5, "-2.5e-5"),
        (0.1 + 0.2, "0.30000000000000004"),
        (123456.0, "123456.0"),
        (65536, "65536"),
        (True, "True"),
        ("SL", '"SL"'),
        ('a"b', "'a\"b'"),
        ("a\nb", "'a\\nb'"),
    ],
)
def test_values_are_written_as_a_person_would(value: Literal, text: str) -> None:
    assert render(value) == text


@given(st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False))
def test_what_was_written_is_read_back(value: Literal) -> None:
    source = replace(HEAD + "A = 'x'  # a comment\n" + TAIL, {"A": value})
    found = find(source)[0]
    assert found.value == value and type(found.value) is type(value)
    assert source.endswith("  # a comment\n" + TAIL)


@given(st.text())
def test_any_text_is_read_back(value: str) -> None:
    if not value.isascii() and any(0xD800 <= ord(character) < 0xE000 for character in value):
        return
    assert find(replace(HEAD + "A = 1\n" + TAIL, {"A": value}))[0].value == value


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_tidy_numbers_stay_in_their_range(a: float, b: float, share: float) -> None:
    low, high = sorted((a, b))
    number = tidy(low + share * (high - low), Range(low, high))
    assert low <= number <= high
