"""Nobody acts: the control."""

from typing import Literal

from fedacdp.strategy import Strategy


class Honest(Strategy):
    """Members, if any, do what everybody does."""

    name: Literal["honest"] = "honest"
