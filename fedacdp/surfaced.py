"""Surfaced hits: how many of the items that a user likes are among the first it is shown."""

from __future__ import annotations

import numpy as np


def surfaced_hits(
    owner: np.ndarray, score: np.ndarray, liked: np.ndarray, shuffle: np.ndarray, users: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hits h_u and liked items n_u of every user, (users,) int64 each; surfaced hits are sum h_u / sum n_u over all
    that one asks about (Vincent, Hecht, Sen 2019, WWW; ties as in the authors' code).

    User u's held-out items are ranked by score, n_u is how many of them it likes, and h_u how many of those are among
    the n_u ranked first. owner, score, liked (n,): of each held-out rating the user, 0 to users - 1, the predicted
    rating, and whether the true one counts as liked. Ratings of equal score stay in the order of `shuffle`, a
    permutation of the n: without it the order in a file would decide.
    """
    turn = shuffle[np.lexsort((-score[shuffle], owner[shuffle]))]
    owner, liked = owner[turn], liked[turn]
    wanted = np.bincount(owner[liked], minlength=users)
    first = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=users))])[:-1]
    shown = np.arange(len(owner)) - first[owner] < wanted[owner]
    return np.bincount(owner[liked & shown], minlength=users), wanted
