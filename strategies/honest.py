"""Nobody acts: the control."""

from typing import ClassVar, Literal

from fedacdp.strategy import Strategy


class Honest(Strategy):
    """Members, if any, do what everybody does."""

    name: Literal["honest"] = "honest"
    about_ratings: ClassVar[bool] = True
