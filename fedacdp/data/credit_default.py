"""Default of Credit Card Clients: a bank in Taiwan, 2005."""

from pathlib import Path
from typing import Literal

from fedacdp.data import files, tables
from fedacdp.data.base import DataSet, Source
from fedacdp.data.partition import held_out

FILE = files.Pin(
    ("credit_default/UCI_Credit_Card.csv",),
    2_862_995,
    "a0f0ab49d6326671d6cd83be5c88dcf18007025fe9a53ecd699119c871176ca1",
)
# UCI has the table as an Excel sheet only; this is the CSV form that scikit-learn's organisation keeps, at a commit.
MIRRORS = (
    "https://huggingface.co/datasets/scikit-learn/credit-card-clients/resolve/"
    "f809522649eaf948ad40a11ed575c4bb4d4460c1/",
)
LABEL = "default.payment.next.month"
CATEGORICAL = ("SEX", "EDUCATION", "MARRIAGE")


class CreditDefault(DataSet):
    """30,000 holders of a credit card, 23 columns; y is default on the next month's payment (22.1 % default).

    Levels are the codes of the file: SEX 1 male, 2 female; EDUCATION 1 graduate school, 2 university, 3 high school,
    4 others (0, 5, 6 undocumented); MARRIAGE 1 married, 2 single, 3 others (0 undocumented). The other columns are
    numbers, PAY_* months of delay (-1 paid duly; -2 and 0 undocumented). The client's number is left out. A fifth of
    each class, always the same, is the test part. Source: Yeh and Lien 2009, Default of Credit Card Clients, UCI,
    DOI 10.24432/C55S3H. Licence: CC BY 4.0.
    """

    name: Literal["credit_default"] = "credit_default"

    def load(self, folder: Path) -> Source:
        table = tables.parse(files.read(folder, FILE, self.name), ",")
        del table["ID"]
        test = held_out(table[LABEL], self.name)
        numeric = set(table) - {LABEL, *CATEGORICAL}
        return tables.encode(tables.rows(table, ~test), tables.rows(table, test), LABEL, ("0", "1"), numeric)

    def fetch(self, folder: Path) -> str:
        files.fetch(folder, [FILE], MIRRORS)
        return f"{self.name}: {folder / FILE.places[0]}, checked"
