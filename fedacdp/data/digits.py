"""Handwritten digits of 8 x 8 pixels: real data that comes with scikit-learn, so nothing is downloaded."""

from pathlib import Path
from typing import Literal

import numpy as np

from fedacdp.data.base import DataSet, Source
from fedacdp.data.partition import held_out
from fedacdp.users import Examples, Schema


class Digits(DataSet):
    """1,797 grey images (1, 8, 8) of handwritten digits; y is the digit.

    Bitmaps of 43 people, reduced to counts from 0 to 16 of dark pixels in blocks of 4 x 4; x is the count / 16. A fifth
    of each digit, always the same, is the test part. Source: Alpaydin and Kaynak 1998, Optical Recognition of
    Handwritten Digits, UCI, DOI 10.24432/C50P49 (the test part there, as it comes with scikit-learn). Licence:
    CC BY 4.0.
    """

    name: Literal["digits"] = "digits"

    def load(self, folder: Path) -> Source:
        # Imported here because scikit-learn takes seconds to import, and this is all that needs it.
        from sklearn.datasets import load_digits

        raw = load_digits()
        x = (raw.images[:, None] / 16.0).astype(np.float32)
        y = raw.target.astype(np.int64)
        schema = Schema((1, 8, 8), tuple("0123456789"))
        test = held_out(y, self.name)
        return Source(Examples(x[~test], y[~test], schema), Examples(x[test], y[test], schema))
