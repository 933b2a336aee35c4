"""Seeds in disguise look the same; changes that matter do not; and nothing that is written takes long."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.agents import search_space as constants
from controller.core.program.normal_form import MAX_DEPTH, depth
from controller.core.program.policy import MAX_BYTES, check, digest
from controller.core.program.seeds import is_seed

HARNESS = (Path(__file__).parents[3] / "harness" / "train.py").read_text(encoding="utf-8")
SECONDS = 20.0
"""Of CPU time: more than any text may take to be checked."""

FRONTIER = """
import random
import numpy as np
import torch
from torch import nn

torch.manual_seed(1)
DEPTH = 4

def build_model():
    return nn.Linear(DEPTH, DEPTH)

def main():
    model = build_model()
    for step in range(100):
        model.step(step)

if __name__ == "__main__":
    main()
"""


def changed(line: str = "", **other: str) -> str:
    """The frontier with `line` in place of its seed, and names in place of others."""
    text = FRONTIER.replace("torch.manual_seed(1)\n", line + "\n")
    for name, value in other.items():
        text = text.replace(f"{name} = ", f"{name} = {value}  # was ")
    return text


# --- seeds in disguise -----------------------------------------------------------------------------------

numbers = st.integers(-(2**40), 2**40)
words = st.text("abcxyz", min_size=1, max_size=8)


def spelled(depth_left: int = 3) -> st.SearchStrategy[str]:
    """Expressions that come to a number, without any input."""
    leaf = st.one_of(
        numbers.map(str),
        numbers.map(hex),
        numbers.map(lambda n: f"int('{n}')"),
        words.map(lambda w: f"len('{w}')"),
        words.map(lambda w: f"hash('{w}')"),
        words.map(lambda w: f"int(hashlib.sha256(b'{w}').hexdigest(), 16)"),
        words.map(lambda w: f"ord('{w}'[0])"),
        numbers.map(lambda n: f"int(f'{{{n}}}')"),
        st.lists(numbers, min_size=1, max_size=4).map(lambda n: f"sum({n})"),
        st.lists(numbers, min_size=1, max_size=4).map(lambda n: f"{tuple(n)}[0]"),
        numbers.map(lambda n: f"(lambda n: n + {n})(3)" if n % 2 else f"sum(i for i in range({n}))"),
    ).filter(lambda text: not text.startswith("(lambda"))
    if not depth_left:
        return leaf
    inner = spelled(depth_left - 1)
    return st.one_of(
        leaf,
        st.tuples(inner, st.sampled_from("+-*^|&%"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        inner.map(lambda t: f"abs(-{t})"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
    )


PLACES = [
    "torch.manual_seed({})",
    "torch.manual_seed(seed={})",
    "torch.cuda.manual_seed_all({})",
    "getattr(torch, 'manual_' + 'seed')({})",
    "SEED = {}\ntorch.manual_seed(SEED)",
    "LUCK = {}\ntorch.manual_seed(LUCK)",
    "A = {}\nB = A + 1\nC = (A, B)\ntorch.manual_seed(C[0])",
    "luck = torch.manual_seed\nluck({})",
    "from torch import manual_seed as luck\nluck({})",
    "def begin(n):\n    torch.manual_seed(n)\nbegin({})",
    "def begin(n={}):\n    torch.manual_seed(n)\nbegin()",
    "def begin(*, start):\n    torch.manual_seed(start)\nbegin(start={})",
    "(lambda n: torch.manual_seed(n))({})",
    "for n in [{}]:\n    torch.manual_seed(n)",
    "g = torch.Generator().manual_seed({})\nprint(torch.randn(2, generator=g))",
    "rng = np.random.default_rng({})\nprint(rng.integers(4))",
    "config = {{'seed': {}}}\nprint(config)",
    "options = type('O', (), {{}})\noptions.seed = {}",
    "prepare(seed={})",
    "prepare(data_seed={})",
    "map(torch.manual_seed, [{}])",
]


@pytest.mark.parametrize("place", PLACES)
@given(first=spelled(), second=spelled())
@settings(max_examples=20, deadline=None)
def test_a_seed_is_a_seed_in_any_disguise(place: str, first: str, second: str) -> None:
    assert digest(changed(place.format(first))) == digest(changed(place.format(second)))


IDLE = st.one_of(
    spelled(),
    spelled().map(lambda value: f"torch.manual_seed({value})"),
    spelled().map(lambda value: f"unused = {value}"),
    spelled().map(lambda value: f"unused: int = {value}"),
    spelled().map(lambda value: f"if False:\n    x = {value}"),
    spelled().map(lambda value: f"while 0:\n    print({value})"),
    spelled().map(lambda value: f"def unused():\n    return {value}"),
    spelled().map(lambda value: f"def unused():\n    return 1\n    print({value})"),
    st.integers(1, 9).map(lambda n: f"torch.rand({n})"),
    st.integers(1, 9).map(lambda n: f"unused = torch.randn({n}, {n})"),
    st.integers(1, 9).map(lambda n: f"for _ in range({n}):\n    torch.rand(1)"),
    st.integers(1, 9).map(lambda n: f"torch.empty({n}).normal_()"),
    st.integers(1, 9).map(lambda n: f"nn.Linear({n}, {n})"),
    spelled().map(lambda value: f"def begin(n={value}):\n    torch.manual_seed(n)\nbegin()"),
    spelled().map(lambda value: f"for n in [{value}]:\n    torch.manual_seed(n)"),
    spelled().map(lambda value: f"import hashlib\ntorch.manual_seed({value})"),
    st.sampled_from(["random.random()", "np.random.rand(3)", "pass", "'a thought'", "assert True"]),
)


@given(statement=IDLE, place=st.sampled_from(["torch.manual_seed(1)", "DEPTH = 4", "def main():"]))
@settings(deadline=None)
def test_a_statement_without_effect_is_none(statement: str, place: str) -> None:
    assert digest(FRONTIER.replace(place, f"{statement}\n{place}")) == digest(FRONTIER)


@given(
    value=st.integers(0, 10**6).filter(lambda n: n != 4),
    written=st.sampled_from(["{}", "{} + 0", "int('{}')"]),
)
@settings(deadline=None)
def test_a_change_of_what_is_no_seed_is_a_change(value: int, written: str) -> None:
    text = changed("torch.manual_seed(1)").replace("DEPTH = 4", f"DEPTH = {written.format(value)}")
    assert digest(text) != digest(FRONTIER)
    assert digest(text) == digest(FRONTIER.replace("DEPTH = 4", f"DEPTH = {value}"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("DEPTH = 4", "DEPTH = 4.0"),
        ("range(100)", "range(101)"),
        ("nn.Linear(DEPTH, DEPTH)", "nn.Linear(DEPTH, DEPTH, bias=False)"),
        ("    main()", "    main()\n    main()"),
        ("        model.step(step)", "        torch.manual_seed(step)\n        model.step(step)"),
        ("        model.step(step)", "        model.step(step)\n        random.shuffle(model.data)"),
        ("        model.step(step)", "        model.step(step)\n        model.weight.normal_()"),
        ("DEPTH = 4", "RESEED_EVERY = 4\nDEPTH = RESEED_EVERY"),
        ("    model = build_model()", "    global model\n    model = build_model()"),
        ("DEPTH = 4", "DEPTH = 4\nDEPTH *= 2"),
        # What may raise: a crash and its repair are two programs.
        ("    main()", "    undefined_name\n    main()"),
        ("    main()", "    unused = torch.no_such_thing\n    main()"),
        ("    model = build_model()", "    model = build_model()\n    unused = model @ model"),
        ("    model = build_model()", "    model = build_model()\n    model.weight[7]"),
        ("DEPTH = 4", "DEPTH = 4\ntorch.backends.cudnn.benchmark = True"),
        ("DEPTH = 4", "DEPTH = 4\ndef len(x): return 3\nDEPTH = len('ab')"),
    ],
)
def test_what_matters_is_not_normalised_away(before: str, after: str) -> None:
    assert before in FRONTIER
    assert digest(FRONTIER.replace(before, after, 1)) != digest(FRONTIER)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2 ** 10", "1024"),
        ("1 << 4 | 1", "17"),
        ("-(-3)", "3"),
        ("0x10", "16"),
        ("1_000", "1000"),
        ("'a' + 'b' * 2", "'abb'"),
        ("f'{3}x'", "'3x'"),
        ("(1, 2)[1]", "2"),
        ("{'a': 5}['a']", "5"),
        ("'abc'.upper()", "'ABC'"),
        ("round(2.6)", "3"),
        ("min(4, 5) if 1 < 2 else 7", "4"),
        ("None or 3", "3"),
        ("math.floor(2.5)", "2"),
        ("sum([1, 2]) + sum((3,))", "6"),
    ],
)
def test_spellings_of_a_constant(written: str, value: str) -> None:
    assert digest(f"model = {written}\n") == digest(f"model = {value}\n")


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["SEED", "seed", "Seed", "data_seed", "seed0", "SEED_0", "SEED2", "dataSeed", "SEED_GPU"],
)
def test_seeds(name: str) -> None:
    assert is_seed(name)


@pytest.mark.parametrize(
    "name",
    ["RESEED_EVERY", "SEED_TOKENS", "seeded", "proceeds", "reseed", "seedling", "linseed", ""],
)
def test_names_that_only_hold_the_word(name: str) -> None:
    assert not is_seed(name)


@pytest.mark.parametrize("name", ["RESEED_EVERY", "SEED_TOKENS", "proceeds"])
def test_a_constant_whose_name_holds_the_word_may_be_changed(name: str) -> None:
    text = f"{name} = 3\nmodel = {name}\n"
    assert check(text.replace("3", "4"), text) is None


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_what_the_tuner_offers_is_never_refused(scale: str) -> None:
    for constant in constants.tunable(constants.find(HARNESS), scale):
        assert constant.domain is not None
        other = (
            constant.domain.values[0 if constant.domain.values[0] != constant.value else -1]
            if isinstance(constant.domain, constants.Choices)
            else constant.domain.low
            if constant.domain.low != constant.value
            else constant.domain.high
        )
        value = type(constant.value)(other)
        objection = check(constants.replace(HARNESS, {constant.name: value}), HARNESS)
        assert objection is None, (constant.name, value, objection)


# --- bounds ----------------------------------------------------------------------------------------------

NASTY = {
    "a tower of powers": "9**9**9**9",
    "a large power": "(10**1000)**1000",
    "a wide shift": "1 << 10**9",
    "a long string": "'a' * 10**9",
    "a long list": "[0] * 10**9",
    "a wide format": "'%1000000000d' % 1",
    "a wide f-string": "f'{1:1000000000}'",
    "a large range": "sum(range(10**12))",
    "a huge integer": "1" + "0" * 200_000,
    "a division by nothing": "1 / 0",
    "an index out of range": "'abc'[7]",
    "a method of a number": "'a'.replace('a', 'b' * 200).replace('b', 'c' * 200).replace('c', 'd' * 200)",
    "many operations": " + ".join(["1"] * 180),
    "many brackets": "(" * 180 + "1" + ")" * 180,
    "many small powers": "[" + ", ".join(["2**99"] * 37_000) + "]",
    "a wide tuple, again and again": "((" + "1," * 60_000 + "),)" + "[0]" * 150,
    "many names": "(" + ", ".join(f"a{n}" for n in range(30_000)) + ")",
    "strange values": "1e999 - 1e999, ~True, chr(-1), 'x'.encode('rot13'), {[]: 1}, int('1' * 256)",
}


@pytest.mark.parametrize("name", NASTY)
def test_nothing_takes_long(name: str) -> None:
    text = f"model = {NASTY[name]}\n"
    assert len(text) <= MAX_BYTES
    began = time.process_time()
    assert len(digest(text)) == 64
    check(text, FRONTIER)
    assert time.process_time() - began < SECONDS


def test_long_chains_of_statements_do_not_take_long() -> None:
    chain = "a0 = 1\n" + "".join(f"a{n} = a{n - 1}\n" for n in range(1, 6_000))
    began = time.process_time()
    digest(chain + FRONTIER)
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("part", ["1+", "-", "not ", "f(", "[", "lambda: ", "a if b else "])
def test_what_is_too_deep_to_be_normalised_is_refused(part: str) -> None:
    """Else it would stand for itself, and a seed would do for a change."""
    closing = {"(": ")", "[": "]"}.get(part[-1:], "")
    text = "import torch\nmodel = " + part * (MAX_DEPTH + 5) + "1" + closing * (MAX_DEPTH + 5) + "\n"
    objection = check(text, FRONTIER)
    assert objection is not None and objection.cause == "syntax"


def test_what_is_not_refused_for_its_depth_can_be_normalised() -> None:
    text = FRONTIER + "x = " + "-" * (MAX_DEPTH - 20) + "f(1)\nprint(x)\n"
    assert depth(ast.parse(text)) <= MAX_DEPTH
    assert digest(text) == digest(text + "# a thought\n")


@given(st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_normalising_never_raises(text: str) -> None:
    assert len(digest(text)) == 64
