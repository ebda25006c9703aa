"""Fashion-MNIST: articles of clothing."""

from pathlib import Path
from typing import Literal

from fedacdp.data import files, images
from fedacdp.data.base import DataSet, Source

FILES = images.pins(
    "fashion_mnist",
    "FashionMNIST",
    {
        "train-images-idx3-ubyte.gz": (
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte.gz": (
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte.gz": (
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    },
)
# torchvision's only mirror does not speak https; these are its authors' repository and the mirror of Keras.
MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class FashionMnist(DataSet):
    """60,000 + 10,000 grey images (1, 28, 28) of articles of clothing; y is the kind of article.

    Source: Xiao, Rasul and Vollgraf 2017, Fashion-MNIST, arXiv 1708.07747. Licence: MIT. The official test part.
    """

    name: Literal["fashion_mnist"] = "fashion_mnist"

    def load(self, folder: Path) -> Source:
        return images.load(folder, self.name, FILES, CLASSES)

    def fetch(self, folder: Path) -> str:
        files.fetch(folder, list(FILES.values()), MIRRORS)
        return f"{self.name}: {len(FILES)} files, checked, in or below {folder}"
