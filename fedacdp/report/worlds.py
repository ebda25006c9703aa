"""Two worlds side by side: with and without the collective, as measured, and with and without one user, as promised."""

from __future__ import annotations

import math
from typing import Any

from fedacdp.report.numbers import BASELINE, StudyResults
from fedacdp.report.odds import odds
from fedacdp.report.words import names, titled

MOST = 12
"""As many settings as are set side by side."""


def worlds(study: StudyResults) -> list[dict[str, Any]]:
    """For each setting at the middle alpha: success and accuracy with and without the collective (same seeds), and the
    odds sentence of its guarantee. Empty where nothing was measured without."""
    if study.middle is None:
        return []
    named, found = names(study.settings), []
    for setting in study.settings:
        point = setting.at(study.middle)
        if point is None:
            continue
        rows = []
        for key, base in [*((goal, (BASELINE, goal[1])) for goal in study.goals), *_ACCURACY]:
            if key in point.estimates and base in point.estimates:
                rows.append({"what": titled(key), "with": point.mean(key), "without": point.mean(base)})
        if rows:
            bounded = math.isfinite(setting.epsilon)
            found.append(
                {"name": named[setting.label], "rows": rows, "odds": odds(setting.guarantee), "bounded": bounded}
            )
    return found[:MOST]


_ACCURACY = [(("accuracy", "all"), ("accuracy_baseline", "all"))]
