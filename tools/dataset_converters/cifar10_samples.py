"""Writes twenty test images of CIFAR-10, to look at what a classifier says of them.

They are the first twenty and come with the package foolbox:
pip install --no-deps -r requirements/demo.txt

    OUT/cifar10_samples/{airplane,...,truck}/*.png  for CustomDataset
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from folders import find_files, parse_out_dir, write_folders

CLASSES = (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
)


def write_samples(out: Path) -> None:
    """Writes the images into folders of their classes."""
    # Their names have the number of the image and that of the class: cifar10_00_3.png
    for file in find_files('foolbox', 'cifar10_*.png'):
        _, number, label = file.stem.split('_')
        folder = out / CLASSES[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / f'{number}.png')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the images if they are not there yet."""
    write_folders(parse_out_dir(__doc__, argv), {'cifar10_samples': write_samples})


if __name__ == '__main__':
    main()
