"""A synthetic population of people who rate items."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from fedacdp.data.base import Source
from fedacdp.data.ratings import AGES, RatingData, Table, source
from fedacdp.keys import Key

GENRES = ("Action", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Horror", "Romance", "Western")
_AGE_SHARES = (0.04, 0.18, 0.35, 0.20, 0.09, 0.08, 0.06)
_WOMEN, _RANK, _FEWEST = 0.28, 8, 20
_MEAN, _ITEM, _USER, _TASTE, _NOISE = 3.2, 0.6, 0.42, 0.42, 0.85
_GROUPED = 0.5  # how much of a person's taste, as a standard deviation, is that of its gender and age
_POPULARITY, _ACTIVITY, _CHOICE = 1.6, 0.9, 0.3


def draw(users: int, items: int, mean: int, key: Key) -> Table:
    """A table of ratings by the key only; the model is in `RatingsPopulation`."""
    rng = key.fold("ratings").rng()
    genre = rng.integers(0, len(GENRES), items)
    genre[: len(GENRES)] = np.arange(len(GENRES))
    traits = rng.standard_normal((len(GENRES), _RANK))[genre] + rng.standard_normal((items, _RANK))
    traits /= np.sqrt((traits**2).sum(axis=1).mean())
    woman, age = rng.random(users) < _WOMEN, rng.choice(len(AGES), users, p=_AGE_SHARES)
    shared = rng.standard_normal((2, _RANK))[woman.astype(int)] + rng.standard_normal((len(AGES), _RANK))[age]
    own = rng.standard_normal((users, _RANK))
    taste = np.sqrt(1 - _GROUPED**2) * own + _GROUPED * np.sqrt(0.5) * shared
    popularity = rng.standard_normal(items)
    quality = 0.3 * popularity + np.sqrt(1 - 0.3**2) * rng.standard_normal(items)
    mood = _USER * rng.standard_normal(users)
    logs = np.log(mean) - _ACTIVITY**2 / 2 + _ACTIVITY * rng.standard_normal(users)
    counts = np.clip(np.exp(logs), min(_FEWEST, items), max(1, 0.6 * items)).astype(np.int64)
    chosen, rated = [], []
    for user in range(users):
        fit = traits @ taste[user]
        wish = _POPULARITY * popularity + _CHOICE * fit + 0.5 * quality + rng.gumbel(size=items)
        own_items = np.sort(np.argpartition(-wish, counts[user] - 1)[: counts[user]])
        liking = _MEAN + _ITEM * quality[own_items] + mood[user] + _TASTE * fit[own_items]
        chosen.append(own_items)
        rated.append(np.clip(np.rint(liking + _NOISE * rng.standard_normal(len(own_items))), 1, 5))
    kept, item = np.unique(np.concatenate(chosen), return_inverse=True)
    people = {"gender": np.where(woman, "F", "M"), "age": np.array(list(AGES.values()))[age]}
    genres: list[tuple[str, ...]] = [(GENRES[genre[place]],) for place in kept]
    return Table(np.repeat(np.arange(users), counts), item, np.concatenate(rated), tuple("12345"), people, genres)


class RatingsPopulation(RatingData):
    """Synthetic people who rate items; y is the rating, 1 to 5.

    Person u rates item i with round(3.2 + 0.6 c_i + 0.42 m_u + 0.42 t_u . v_i + 0.85 noise), cut to 1..5: quality c and
    mood m are standard normal, tastes t and traits v have 8 dimensions and |v|^2 = 1 on average. Traits are those of
    one of nine genres plus an item's own; a quarter of the variance of tastes comes from gender and age. People rate at
    least 20 items, log-normally many around `ratings`, drawn without replacement in proportion to
    exp(1.6 popularity + 0.3 t_u . v_i + 0.5 c_i): a few items have most of the ratings, and people rate what they like.
    Items that nobody rated are left out. Groups of people: `gender`, `age`, `activity`, `favourite`.

    What it is like: the weight of tastes was chosen so that, with 3,000 people, 2,500 items and ratings = 165, a matrix
    factorisation surfaces about 1.2 points more hits than item means, as published of MovieLens 1M (1.4); errors are
    0.98 for item means and 0.87 for the factorisation (0.98 and 0.87 there), 0.55 of the ratings are liked (0.58), and
    a random ranking surfaces 0.61. Fewer people leave less of that edge: at the default size hardly any. What it is
    not: MovieLens. Tastes are linear and last for ever, the noise is the same for everybody, nobody rates in sessions,
    and there are no series and no years.

    `draw` numbers independent populations. Source: made for this project, in the manner of generative models of matrix
    factorisation (Salakhutdinov, Mnih 2007, NIPS). Licence: none needed, the records are made here.
    """

    name: Literal["ratings_population"] = "ratings_population"
    users: PositiveInt = 943
    items: int = Field(default=1682, ge=len(GENRES))
    ratings: PositiveInt = 106
    draw: NonNegativeInt = 0

    @property
    def uncut(self) -> Self:
        return self.model_copy(update={"column": None})

    def load(self, folder: Path) -> Source:
        return source(draw(self.users, self.items, self.ratings, Key(self.draw)), self.fold, self.name)
