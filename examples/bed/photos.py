"""Natural photographs from Debian's gcompris-qt-data, split by photo, and random resized crops of them.

The photos stand for the images a network meets: one half to calibrate on, the other to see how far a pruned network
agrees with the dense one. No labels are needed for that.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bed.missing import in_debian_package
from bed.rcc import read_rcc

CALIBRATION, EVALUATION = 0, 1
"""The two halves of the photos. Nothing may be fitted to the second."""

PACKAGE = "gcompris-qt-data"
CONTAINERS = "usr/share/gcompris-qt/rcc"
PHOTO_FOLDERS = (
    "categorization/resource/images/fishes",
    "categorization/resource/images/monuments",
    "categorization/resource/images/others",
    "categorization/resource/images/renewable",
    "categorization/resource/images/tools",
    "clickgame/resource",
    "details/resource/image",
    "erase/resource",
    "explore_farm_animals/resource/animals",
    "explore_monuments/resource",
    "explore_world_animals/resource/animals",
    "explore_world_music/resource/music",
)
"""Where the containers hold photographs. Their cut-outs have an alpha channel and are left out by that."""

PAINTINGS = ("Gogh", "Auvers", "Tanguy")
SHORTEST_SIDE = 200  # pixels; smaller pictures are thumbnails
STORED_SIDE = 400  # a crop of the smallest area, 0.35, still has more than 224 pixels a side
AREA = (0.35, 1.0)
ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Photo:
    """One photograph, RGB, shorter side at most 400 pixels. ``half`` is decided by the MD5 of its file."""

    name: str
    half: int
    image: Image.Image


@lru_cache(maxsize=1)
def load_photos() -> tuple[Photo, ...]:
    """All photographs of the package, in a fixed order: 255 of them in version 3.1.

    Raises:
        MissingData: if the Debian package was not brought.
    """
    folder = in_debian_package(PACKAGE, path=CONTAINERS)
    return tuple(
        Photo(name, split_half(content), photo)
        for container in sorted({entry.split("/")[0] for entry in PHOTO_FOLDERS})
        for name, content in _pictures(folder / f"{container}.rcc")
        if (photo := _as_photo(content)) is not None
    )


def split_half(content: bytes) -> int:
    """CALIBRATION or EVALUATION for the photo with this file content, so that equal files never part.

    Example:
        >>> split_half(b"a photo"), split_half(b"another photo")
        (0, 1)
    """
    return int(hashlib.md5(content, usedforsecurity=False).hexdigest(), 16) & 1


def crops(photos: tuple[Photo, ...], count: int, *, half: int, seed: int, size: int = 224) -> NDArray[np.uint8]:
    """Random resized crops of one half of the photos, each photo in turn before any comes again.

    Area 0.35 to 1 of the photo, aspect 3/4 to 4/3, bicubic, flipped half of the time.

    Args:
        photos: what :func:`load_photos` returned.
        count: how many crops.
        half: CALIBRATION or EVALUATION.
        seed: of order and crops (numpy's PCG64); the halves draw from different streams.
        size: side of a crop in pixels.

    Returns:
        (count, size, size, 3).
    """
    generator = np.random.default_rng([seed, half])
    images = [photo.image for photo in photos if photo.half == half]
    order = np.concatenate([generator.permutation(len(images)) for _ in range(-(-count // len(images)))])[:count]
    return np.stack([np.asarray(_random_crop(images[i], generator, size)) for i in order])


def _pictures(container: Path) -> list[tuple[str, bytes]]:
    entries = (
        (name.partition("/activities/")[2], content) for name, content in read_rcc(container, suffixes=(".webp",))
    )
    return [
        (name, content)
        for name, content in entries
        if name.startswith(PHOTO_FOLDERS) and not any(word in name for word in PAINTINGS)
    ]


def _as_photo(content: bytes) -> Image.Image | None:
    image = Image.open(io.BytesIO(content))
    if image.mode != "RGB" or min(image.size) < SHORTEST_SIDE:
        return None
    scale = min(1.0, STORED_SIDE / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _random_crop(image: Image.Image, generator: np.random.Generator, size: int) -> Image.Image:
    width, height = _crop_shape(image, generator)
    left, top = (int(generator.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    box = (left, top, left + width, top + height)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else crop


def _crop_shape(image: Image.Image, generator: np.random.Generator) -> tuple[int, int]:
    for _ in range(20):
        area = generator.uniform(*AREA) * image.width * image.height
        aspect = float(np.exp(generator.uniform(*np.log(ASPECT))))
        width, height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if width <= image.width and height <= image.height:
            return width, height
    return (min(image.size),) * 2  # a panorama in which no drawn shape fits
