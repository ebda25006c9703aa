"""No privacy: updates are averaged as they are."""

from typing import Literal

from fedacdp.privacy.base import Mechanism


class NoPrivacy(Mechanism):
    """Neither clipping nor noise. Updates that are not finite are still dropped and counted."""

    name: Literal["none"] = "none"
