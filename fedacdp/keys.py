"""Random streams with an address instead of a position.

A `Key` names a stream by a seed and a path (purpose, round, user, ...). Two keys with different paths are independent,
the same key always gives the same numbers, and nothing depends on the order in which streams are used. No global
generator is read or written anywhere in the project.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_TURN = np.float32(2 * math.pi * 2.0**-32)
_IN_CACHE = 2**14  # counters that are done at once: six arrays of them fit in a core's cache


@dataclass(frozen=True, slots=True)
class Key:
    """The address of a random stream: `Key(seed).fold("cohort", round)`."""

    seed: int
    path: tuple[int, ...] = ()

    def fold(self, *parts: int | str) -> Key:
        """The key below this one; text is hashed, whole numbers must not be negative (ValueError)."""
        return Key(self.seed, self.path + tuple(_number(part) for part in parts))

    def rng(self) -> np.random.Generator:
        """A numpy generator (Philox) that starts at this address."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=self.path)))

    def uniforms(self, ids: np.ndarray, count: int) -> np.ndarray:
        """`count` uniform numbers in [0, 1) for each id, all at once: (len(ids), count) float64, 53 random bits each.

        Row i depends on this key and `ids[i]` only, never on which other ids are asked for: a user's numbers are the
        same in any chunk. Philox 4x32-10 (Salmon et al. 2011, SC11) with the id in the counter.
        """
        words = self._words(ids, count)
        words >>= np.uint64(11)
        return words * 2.0**-53

    def _words(self, ids: np.ndarray, count: int) -> np.ndarray:
        """`count` words of 64 random bits for each id, (len(ids), count) uint64."""
        ids, blocks = np.asarray(ids), (count + 1) // 2
        seed = np.random.SeedSequence(self.seed, spawn_key=self.path).generate_state(2, np.uint32)
        found = np.empty((len(ids), 2 * blocks), np.uint64)
        step = max(1, _IN_CACHE // max(1, blocks))
        block = np.arange(blocks, dtype=np.uint64)[None, :]
        for first in range(0, len(ids), step):
            some = ids[first : first + step].astype(np.uint64)[:, None]
            words = philox4x32(
                (block & _LOW, block >> _SHIFT, some & _LOW, some >> _SHIFT), (int(seed[0]), int(seed[1]))
            )
            for place in (0, 1):
                upper, lower = words[2 * place : 2 * place + 2]
                upper <<= _SHIFT
                np.bitwise_or(upper, lower, out=found[first : first + step, place::2])
        return found[:, :count]

    def normals(self, ids: np.ndarray, counts: np.ndarray | int) -> np.ndarray:
        """Standard normals, (len(ids), max count) float32: row i holds counts[i] of them, then zeros.

        As in `uniforms`, row i depends on this key, `ids[i]` and counts[i] only. Each row has a generator of its own
        (SFC64, Doty-Humphrey, PractRand), started at 192 bits of Philox; its 32-bit words become normals by the
        transform of Box and Muller (1958), which vectorises and is five times as fast as numpy's ziggurat. The largest
        value it can give is 6.8.
        """
        found = np.empty((len(ids), int(np.max(counts, initial=0))), np.float32)
        counts = np.broadcast_to(np.asarray(counts), len(ids))
        seeds = self.fold("normals")._words(ids, 3)
        for row, (seed, count) in enumerate(zip(seeds, counts, strict=True)):
            bits = np.random.SFC64(_Seed(seed))  # type: ignore[arg-type]
            _box_muller(bits, found[row, :count])
            found[row, count:] = 0
        return found


class _Seed(np.random.bit_generator.ISeedSequence):
    """Words that start a generator, as they are."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        """The first words, of 64 bits each: what SFC64 asks for."""
        return self._words[:n_words]


def _box_muller(bits: np.random.BitGenerator, out: np.ndarray) -> None:
    """Fill `out` (n,) with normals r cos a, then r sin a; r^2 = -2 log u, u and a / 2 pi uniform from 32 bits each."""
    pairs = (len(out) + 1) // 2
    words = bits.random_raw(pairs).view(np.uint32).astype(np.float32)
    radius, angle = words[:pairs], words[pairs:]
    radius += np.float32(0.5)  # never log 0
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= _TURN
    np.cos(angle, out=out[:pairs])
    out[:pairs] *= radius
    rest = len(out) - pairs
    np.sin(angle[:rest], out=out[pairs:])
    out[pairs:] *= radius[:rest]


def philox4x32(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Ten rounds of Philox 4x32 on broadcastable uint64 arrays that hold 32-bit words; returns four such arrays."""
    # In place, because allocating and filling fresh arrays takes three times as long as the arithmetic.
    c0, c1, c2, c3 = (array.copy() for array in np.broadcast_arrays(*counter))
    left, right = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(10):
        np.multiply(c0, _MULTIPLIERS[0], out=left)
        np.multiply(c2, _MULTIPLIERS[1], out=right)
        np.right_shift(right, _SHIFT, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(left, _SHIFT, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(right, _LOW, out=c1)
        np.bitwise_and(left, _LOW, out=c3)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _number(part: int | str) -> int:
    if isinstance(part, str):
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "big")
    if part < 0:
        raise ValueError(f"part of a key = {part}: must not be negative")
    return int(part)
