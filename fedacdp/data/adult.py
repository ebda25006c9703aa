"""Adult: incomes in the census of 1994."""

from pathlib import Path
from typing import Literal

import numpy as np

from fedacdp.data import files, tables
from fedacdp.data.base import DataSet, Source

FILES = {
    "adult.data": files.Pin(
        ("adult/adult.data",),
        3_974_305,
        "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    ),
    "adult.test": files.Pin(
        ("adult/adult.test",),
        2_003_153,
        "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    ),
}
URL, LIMIT = "https://archive.ics.uci.edu/static/public/2/adult.zip", 16_000_000
COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
NUMERIC = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
CLASSES = ("<=50K", ">50K")


class Adult(DataSet):
    """32,561 + 16,281 people of the United States' census of 1994, 14 columns; y is an income above 50,000 dollars.

    An unknown value, `?` in the file, is a level of its column. The official test part. Source: Becker and Kohavi 1996,
    Adult, UCI, DOI 10.24432/C5XW20. Licence: CC BY 4.0.
    """

    name: Literal["adult"] = "adult"

    def load(self, folder: Path) -> Source:
        train, test = (tables.parse(files.read(folder, pin, self.name), ",", COLUMNS) for pin in FILES.values())
        # The labels of the test file, and only those, end in a full stop.
        test["income"] = np.char.rstrip(test["income"], ".")
        return tables.encode(train, test, "income", CLASSES, NUMERIC)

    def fetch(self, folder: Path) -> str:
        files.fetch_archive(folder, URL, LIMIT, FILES)
        return f"{self.name}: {len(FILES)} files, checked, in {folder / self.name}"
