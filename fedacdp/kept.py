"""Values that are kept because they will be asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")
_FEW, _MANY, _SMALL = 8, 256, 2**28


class Kept(Generic[_Value]):
    """The values used last: eight, or as many, up to 256, as take 256 MiB together by `size`.

    Runs in flight at once come in turns: were fewer kept than they are, each would be prepared anew at every round.
    """

    def __init__(self, size: Callable[[_Value], int]):
        self._size = size
        self._values: OrderedDict[tuple[str, ...], _Value] = OrderedDict()

    def __call__(self, slot: tuple[str, ...], make: Callable[[], _Value]) -> _Value:
        """The value at `slot`, made if it is not there."""
        value = self._values.pop(slot) if slot in self._values else make()
        self._values[slot] = value
        while len(self._values) > _FEW and (len(self._values) > _MANY or self._bytes > _SMALL):
            self._values.popitem(last=False)
        return value

    @property
    def _bytes(self) -> int:
        return sum(map(self._size, self._values.values()))
