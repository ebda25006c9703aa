"""Images in the idx format of MNIST, and the files of data sets that are published like it."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedacdp.data.base import Source
from fedacdp.data.files import Pin, read
from fedacdp.users import Examples, Schema


def pins(name: str, torchvision_name: str, sizes_and_digests: Mapping[str, tuple[int, str]]) -> dict[str, Pin]:
    """Pins of idx files by file name: in `<data folder>/<name>/`, or where torchvision keeps its download."""
    return {
        file: Pin((f"{name}/{file}", f"{torchvision_name}/raw/{file}"), size, digest)
        for file, (size, digest) in sizes_and_digests.items()
    }


def load(folder: Path, name: str, files: Mapping[str, Pin], classes: tuple[str, ...]) -> Source:
    """The training and the test part from the four files of an MNIST-like data set; ValueError if one is not usable."""
    parts = []
    for part in ("train", "t10k"):
        pixels = idx(gzip.decompress(read(folder, files[f"{part}-images-idx3-ubyte.gz"], name)), 3)
        labels = idx(gzip.decompress(read(folder, files[f"{part}-labels-idx1-ubyte.gz"], name)), 1)
        if len(pixels) != len(labels):
            raise ValueError(f"{name}: {len(pixels)} {part} images, but {len(labels)} labels")
        schema = Schema((1, *pixels.shape[1:]), classes)
        parts.append(Examples(unit_range(pixels[:, None]), labels.astype(np.int64), schema))
    train, test = parts
    return Source(train, test)


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Bytes 0 to 255 as float32 in [0, 1], in one allocation."""
    scaled: np.ndarray = pixels / np.float32(255)
    return scaled


def idx(data: bytes, dimensions: int) -> np.ndarray:
    """The array of bytes in an uncompressed idx file; ValueError if it is not one with so many dimensions.

    Format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each size as a big-endian 32-bit
    number, then the elements in row-major order (LeCun, Cortes and Burges, the MNIST page).
    """
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise ValueError(f"not an idx file of unsigned bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) != start + math.prod(shape):
        raise ValueError(f"an idx file of shape {shape} with {len(data) - start} elements")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
