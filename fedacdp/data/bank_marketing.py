"""Bank Marketing: telephone calls of a Portuguese bank."""

from pathlib import Path
from typing import Literal

from fedacdp.data import files, tables
from fedacdp.data.base import DataSet, Source
from fedacdp.data.partition import held_out

FILE = files.Pin(
    ("bank_marketing/bank-full.csv",),
    4_610_348,
    "d1513ec63b385506f7cfce9f2c5caa9fe99e7ba4e8c3fa264b3aaf0f849ed32d",
)
URL, LIMIT = "https://archive.ics.uci.edu/static/public/222/bank+marketing.zip", 16_000_000
NUMERIC = ("age", "balance", "day", "duration", "campaign", "pdays", "previous")


class BankMarketing(DataSet):
    """45,211 clients of a bank, 16 columns; y is whether the client took a term deposit (11.7 % yes).

    The last contact's `duration` is known only after the call; `pdays` is -1 for clients not contacted before. A fifth
    of each class, always the same, is the test part. Source: Moro, Rita and Cortez 2014, Bank Marketing, UCI,
    DOI 10.24432/C5K306, file bank-full.csv. Licence: CC BY 4.0.
    """

    name: Literal["bank_marketing"] = "bank_marketing"

    def load(self, folder: Path) -> Source:
        table = tables.parse(files.read(folder, FILE, self.name), ";")
        test = held_out(table["y"], self.name)
        return tables.encode(tables.rows(table, ~test), tables.rows(table, test), "y", ("no", "yes"), NUMERIC)

    def fetch(self, folder: Path) -> str:
        files.fetch_archive(folder, URL, LIMIT, {"bank.zip/bank-full.csv": FILE})
        return f"{self.name}: {folder / FILE.places[0]}, checked"
