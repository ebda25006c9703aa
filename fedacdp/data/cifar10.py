"""CIFAR-10: small colour images."""

import pickletools
from pathlib import Path
from typing import Literal

import numpy as np

from fedacdp.data import files
from fedacdp.data.base import DataSet, Source
from fedacdp.data.images import unit_range
from fedacdp.users import Examples, Schema

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE_LIMIT, BATCH_LIMIT = 180_000_000, 32_000_000
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
FILES = {
    batch: files.Pin((f"cifar10/{batch}", f"cifar-10-batches-py/{batch}"), BATCH_LIMIT, digest, "md5")
    for batch, digest in MD5.items()
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(DataSet):
    """50,000 + 10,000 colour images (3, 32, 32) of ten kinds of things; y is the kind.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, technical report, University of
    Toronto. Licence: none stated. The official test part. The files are those of torchvision, checked by its MD5s
    (the archive by SHA-256 too); they are pickles, and are read without unpickling, see `batch`.
    """

    name: Literal["cifar10"] = "cifar10"

    def load(self, folder: Path) -> Source:
        schema = Schema((3, 32, 32), CLASSES)
        batches = {name: batch(files.read(folder, pin, self.name)) for name, pin in FILES.items()}
        test_x, test_y = batches.pop("test_batch")
        train_x = np.concatenate([x for x, _ in batches.values()])
        train_y = np.concatenate([y for _, y in batches.values()])
        return Source(
            Examples(unit_range(train_x), train_y, schema),
            Examples(unit_range(test_x), test_y, schema),
        )

    def fetch(self, folder: Path) -> str:
        members = {f"cifar-10-batches-py/{batch}": pin for batch, pin in FILES.items()}
        files.fetch_archive(folder, URL, ARCHIVE_LIMIT, members, ARCHIVE_SHA256)
        return f"{self.name}: {len(FILES)} files, checked, in or below {folder}"


def batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of a batch; ValueError if it does not have the known form.

    A pickle is a program, and running a stranger's program is never worth a data set. `pickletools.genops` only splits
    it into instructions, none of which is carried out or looked up; of these the two things needed are picked: the
    numbers after the text "labels", and the longest string after the text "data", which holds the rows of an
    n x 3072 array of bytes (red, green, blue, each by rows). An array in another order of elements is refused.
    """
    key, pixels, column_major = "", "", False
    labels: list[int] = []
    try:
        for operation, value, _ in pickletools.genops(data):
            if isinstance(value, str) and value in ("data", "labels", "filenames", "batch_label"):
                key = value
            elif isinstance(value, int) and key == "labels" and operation.name.startswith("BININT"):
                labels.append(value)
            elif isinstance(value, str) and key == "data" and operation.name in ("BINSTRING", "SHORT_BINSTRING"):
                pixels = max(pixels, value, key=len)
            column_major |= key == "data" and operation.name == "NEWTRUE"
    except ValueError as error:
        raise ValueError(f"not a batch of CIFAR-10: {error}") from None
    y = np.array(labels, dtype=np.int64)
    if column_major or not labels or len(pixels) != 3072 * len(y) or not ((y >= 0) & (y < len(CLASSES))).all():
        raise ValueError(f"not a batch of CIFAR-10: {len(pixels)} bytes of pixels, {len(y)} labels")
    return np.frombuffer(pixels.encode("latin-1"), np.uint8).reshape(-1, 3, 32, 32), y
