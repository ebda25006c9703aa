"""MNIST: handwritten digits."""

from pathlib import Path
from typing import Literal

from fedacdp.data import files, images
from fedacdp.data.base import DataSet, Source

FILES = images.pins(
    "mnist",
    "MNIST",
    {
        "train-images-idx3-ubyte.gz": (
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        "train-labels-idx1-ubyte.gz": (
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        "t10k-images-idx3-ubyte.gz": (
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    },
)
# torchvision's mirror that speaks https, and the one of TensorFlow Datasets.
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")


class Mnist(DataSet):
    """60,000 + 10,000 grey images (1, 28, 28) of handwritten digits; y is the digit.

    Source: LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition,
    DOI 10.1109/5.726791. Licence: CC BY-SA 3.0 (as the documentation of Keras has it). The official test part.
    """

    name: Literal["mnist"] = "mnist"

    def load(self, folder: Path) -> Source:
        return images.load(folder, self.name, FILES, tuple("0123456789"))

    def fetch(self, folder: Path) -> str:
        files.fetch(folder, list(FILES.values()), MIRRORS)
        return f"{self.name}: {len(FILES)} files, checked, in or below {folder}"
