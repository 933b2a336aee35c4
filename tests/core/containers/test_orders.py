"""What can be said to a runner, and that nothing else can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from controller.core.containers import orders
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import (
    Ask,
    CreateVolume,
    Describe,
    Follow,
    Item,
    Leftovers,
    Order,
    Output,
    Remove,
    Start,
    Usage,
    Wait,
)

PLACE = ContainerNames(Path("/srv/home"), "42", 3)
NAME = PLACE.name(Item.TRAINER)
DIGEST = "0" * 64
ORDER = Order(experiment="42", attempt=3, item=Item.JUDGE, seed=7)


@pytest.mark.parametrize(
    "request_",
    [
        Start(order=ORDER, digest=DIGEST),
        Start(order=PLACE.order(Item.TRAINER), digest=DIGEST, text_bytes=256 * 1024),
        CreateVolume(order=PLACE.order(Item.WORKSPACE), digest=DIGEST),
        Follow(name=NAME, since=1.5),
        Wait(name=NAME, deadline=None),
        Wait(name=NAME, deadline=12345.678),
        Ask(verb="kill", name=NAME),
        Output(name=NAME, limit=1024),
        Remove(containers=(NAME,), volumes=(PLACE.name(Item.REPLIES_2),)),
        Leftovers(keep=("42", "try")),
        Describe(verb="devices"),
        Usage(),
        Usage(names=(NAME,)),
    ],
)
def test_what_is_said_is_what_is_heard(request_: BaseModel) -> None:
    assert orders.parse(request_.model_dump_json().encode()) == request_


START = {"verb": "start", "order": json.loads(ORDER.model_dump_json()), "digest": DIGEST}


def ordered(**changes: Any) -> dict[str, Any]:
    return {**START, "order": {**json.loads(ORDER.model_dump_json()), **changes}}


@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        "start",
        {"verb": "exec", "name": NAME},
        {"verb": "start"},
        {**START, "image": "alpine"},
        {**START, "digest": "0" * 63},
        {**START, "text_bytes": 256 * 1024 + 1},
        {**START, "text_bytes": -1},
        ordered(path="/etc"),
        ordered(environment={"A": "b"}),
        ordered(experiment="../../etc"),
        ordered(experiment="042"),
        ordered(experiment="1234567890"),
        ordered(experiment="prepare"),
        ordered(experiment="try\n"),
        ordered(experiment=42),
        ordered(attempt=0),
        ordered(attempt=1_000_000),
        ordered(attempt="1"),
        ordered(attempt=True),
        ordered(item="prepare"),
        ordered(item="Trainer"),
        ordered(seed=-1),
        ordered(seed=2**63),
        ordered(seed=1.5),
        {"verb": "kill", "name": "postgres"},
        {"verb": "kill", "name": f"/{NAME}"},
        {"verb": "kill", "name": f"{NAME}/../x"},
        {"verb": "kill", "name": f"{NAME}?force=1"},
        {"verb": "kill", "name": f"{NAME}\n"},
        {"verb": "kill", "name": NAME.replace("glovebox", "Glovebox")},
        {"verb": "wait", "name": NAME, "deadline": "soon"},
        {"verb": "output", "name": NAME, "limit": 1024**2 + 1},
        {"verb": "remove", "containers": [NAME] * 65},
        {"verb": "leftovers", "keep": ["*"]},
    ],
    ids=json.dumps,
)
def test_there_is_no_way_to_say_more(said: Any) -> None:
    with pytest.raises(ValueError, match="not a valid request") as caught:
        orders.parse(json.dumps(said).encode())
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


@pytest.mark.parametrize("raw", [b"NaN", b'{"verb":"wait","name":"%s","deadline":NaN}' % NAME.encode()])
def test_a_deadline_is_a_number(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a valid request"):
        orders.parse(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"verb":"kill","name":"\\ud800"}')
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    try:
        orders.parse(raw)
    except ValueError as error:
        assert "not a valid request" in str(error)


@given(
    st.integers(0, 999_999_999).map(str) | st.sampled_from(["try", "rehearsal", "slot", "prepare", "doctor"]),
    st.integers(1, 999_999),
    st.sampled_from(Item),
)
def test_every_name_we_give_can_be_said(experiment: str, attempt: int, item: Item) -> None:
    name = ContainerNames(Path("/srv/home"), experiment, attempt).name(item)
    assert orders.names(Ask(verb="alive", name=name)) == (name,)
