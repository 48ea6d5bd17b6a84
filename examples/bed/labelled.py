"""Labelled images: foolbox's 20 of ImageNet, and Fashion-MNIST."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bed.missing import in_debian_package, in_python_package

FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = "usr/share/datasets/fashion-mnist"


def imagenet20(*, size: int = 224) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 20 ImageNet images that foolbox ships: shorter side to 8/7 of ``size``, bicubic, and the centre of that.

    Returns:
        Images (20, size, size, 3) and ImageNet-1k labels (20,).

    Raises:
        MissingData: if foolbox is not installed.
    """
    folder = in_python_package("foolbox", "foolbox", path="data")
    files = sorted(folder.glob("imagenet_*_*.jpg"))
    labels = np.array([int(file.stem.rsplit("_", 1)[1]) for file in files])
    return np.stack([np.asarray(_centre(Image.open(file).convert("RGB"), size)) for file in files]), labels


def fashion_mnist(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Fashion-MNIST.

    Args:
        split: ``"train"`` (60 000 images) or ``"t10k"`` (10 000).

    Returns:
        Images (n, 28, 28) and labels (n,), 0 to 9.

    Raises:
        MissingData: if the Debian package is neither installed nor unpacked by ``make examples``.
    """
    images, labels = (
        read_idx(in_debian_package(FASHION_PACKAGE, path=f"{FASHION_FOLDER}/{split}-{content}-ubyte.gz"))
        for content in ("images-idx3", "labels-idx1")
    )
    return images, labels.astype(np.int64)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """A gzipped idx file of bytes: 0, 0, type 8, number of axes; then the length of each axis (u32, big endian); data.

    Raises:
        ValueError: if the header is not that of bytes, or the lengths do not match the data.
    """
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: header {data[:4].hex(' ')} is not that of an idx file of bytes (00 00 08 ..)")
    axes = data[3]
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", axes, offset=4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape):
        raise ValueError(f"{path}: {values.size} values for shape {shape}")
    return values.reshape(shape)


def _centre(image: Image.Image, size: int) -> Image.Image:
    scale = size * 8 / 7 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
