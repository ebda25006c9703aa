"""Statlog German Credit: good and bad debtors."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from fedacdp.data import files, tables
from fedacdp.data.base import DataSet, Source
from fedacdp.data.partition import held_out

FILE = files.Pin(
    ("german/german.data",),
    79_793,
    "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
)
URL, LIMIT = "https://archive.ics.uci.edu/static/public/144/statlog+german+credit+data.zip", 4_000_000
# The attributes of german.doc, in its order.
COLUMNS = (
    *("checking_account", "duration_months", "credit_history", "purpose", "credit_amount", "savings"),
    *("employment_since", "installment_rate", "personal_status_and_sex", "other_debtors", "residence_since"),
    *("property", "age", "other_installment_plans", "housing", "existing_credits", "job", "liable_people"),
    *("telephone", "foreign_worker", "risk"),
)
NUMERIC = (
    *("duration_months", "credit_amount", "installment_rate", "residence_since", "age", "existing_credits"),
    "liable_people",
)
FEMALE = ("A92", "A95")


class German(DataSet):
    """1,000 applicants for credit, 20 columns; y is `1`, a good risk (700), or `2`, a bad one (300).

    Levels are the codes of german.doc. The groups have one more column, `sex` (female, male), read off
    `personal_status_and_sex`. A fifth of each class, always the same, is the test part. Source: Hofmann 1994, Statlog
    (German Credit Data), UCI, DOI 10.24432/C5NC77. Licence: CC BY 4.0.
    """

    name: Literal["german"] = "german"

    def load(self, folder: Path) -> Source:
        table = tables.parse(files.read(folder, FILE, self.name), " ", COLUMNS)
        test = held_out(table["risk"], self.name)
        source = tables.encode(tables.rows(table, ~test), tables.rows(table, test), "risk", ("1", "2"), NUMERIC)
        female = np.isin(source.groups["personal_status_and_sex"], FEMALE)
        return dataclasses.replace(source, groups=source.groups | {"sex": np.where(female, "female", "male")})

    def fetch(self, folder: Path) -> str:
        files.fetch_archive(folder, URL, LIMIT, {"german.data": FILE})
        return f"{self.name}: {folder / FILE.places[0]}, checked"
