"""A history that forgets its beginning reads like one that does not."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.sequences import AppendOnly, Selection


@given(st.lists(st.integers(), max_size=30), st.integers(-5, 40), st.integers(-40, 40), st.integers(-40, 40))
def test_what_is_forgotten_is_recalled(items: list[int], before: int, low: int, high: int) -> None:
    growing = AppendOnly(items)
    growing.forget(before, items.__getitem__)
    assert growing == items
    assert list(growing) == items
    assert growing[low:high] == items[low:high]
    growing.append(7)
    assert growing[-1] == growing.last == 7
    growing.replace(len(items), 8)
    assert list(growing) == [*items, 8]
    growing.forget(before + 3, [*items, 8].__getitem__)
    assert growing.last in (8, None)
    assert list(growing) == [*items, 8]


def test_what_is_in_memory_is_not_recalled() -> None:
    growing = AppendOnly("abc", first=10)
    assert len(growing) == 13
    assert growing[-3:] == ["a", "b", "c"]
    with pytest.raises(IndexError):
        growing[9]
    with pytest.raises(IndexError):
        growing[13]


def test_what_is_in_memory_is_replaced_wherever_it_stands() -> None:
    growing = AppendOnly("abcd")
    growing.forget(2, "abcd".__getitem__)
    growing.replace(2, "x")
    assert list(growing) == ["a", "b", "x", "d"]


@given(st.lists(st.integers(), min_size=1, max_size=10), st.data())
def test_a_selection_is_a_view_in_the_order_of_its_places(items: list[int], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=10))
    selection, chosen = Selection(items, places), [items[place] for place in places]
    assert list(selection) == chosen
    assert list(reversed(selection)) == chosen[::-1]
    assert selection[-2:] == chosen[-2:]
    with pytest.raises(IndexError):
        selection[len(places)]
    items[0] += 1
    places.append(0)
    assert (len(selection), selection[-1]) == (len(chosen) + 1, items[0])


def test_another_thread_reads_while_it_grows_and_forgets() -> None:
    growing: AppendOnly[int] = AppendOnly()
    wrong: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            length = len(growing)
            wrong.extend(index for index in range(length) if growing[index] != index)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(5000):
        growing.append(number)
        if number % 10 == 0:
            growing.forget(number - 20, lambda index: index)
    done.set()
    reader.join()
    assert not wrong
