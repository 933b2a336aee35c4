"""Sequences for long histories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


def _nothing_to_recall(index: int) -> object:
    raise IndexError(index)


class AppendOnly(Sequence[T]):
    """An append-only sequence. Its oldest items may be reloaded on demand instead of kept in memory.

    Other threads may read it while it grows or forgets.
    """

    def __init__(self, items: Iterable[T] = (), *, first: int = 0) -> None:
        """`first` is the index of the first of `items`; items before it cannot be read."""
        self._recall: Callable[[int], T] = _nothing_to_recall  # type: ignore[assignment]
        self._kept: tuple[int, list[T]] = first, list(items)

    def append(self, item: T) -> None:
        self._kept[1].append(item)

    def replace(self, index: int, item: T) -> None:
        """Put another item in the place of one that is in memory."""
        first, items = self._kept
        items[index - first] = item

    def forget(self, before: int, recall: Callable[[int], T]) -> None:
        """Drop the items with an index below `before`; `recall` reloads them, one at a time."""
        first, items = self._kept
        self._recall = recall
        dropped = min(max(0, before - first), len(items))
        self._kept = first + dropped, items[dropped:]

    @property
    def last(self) -> T | None:
        """The last item if it is in memory."""
        items = self._kept[1]
        return items[-1] if items else None

    def __len__(self) -> int:
        first, items = self._kept
        return first + len(items)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._at(place) for place in range(len(self))[index]]
        return self._at(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _at(self, place: int) -> T:
        first, items = self._kept
        return items[place - first] if place >= first else self._recall(place)


class Selection(Sequence[T], Generic[T]):
    """The items of a sequence at some places, in the order of the places, without a copy."""

    def __init__(self, items: Sequence[T], places: Sequence[int]) -> None:
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._items[place] for place in self._places[index]]
        return self._items[self._places[index]]


def _same(one: object, other: object) -> bool:
    return one == other
