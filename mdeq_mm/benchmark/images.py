"""Reading of images by the tools. An error names the file."""

from __future__ import annotations

from os import PathLike
from typing import Any, Union

import mmcv
import numpy as np
from torch.utils.data import DataLoader, Dataset

_PATHS = ('img_path', 'seg_map_path')


def read_image(path: Union[str, PathLike[str]], flag: str = 'color') -> np.ndarray:
    """Reads an image file.

    Args:
        path (str or Path): The file.
        flag (str): ``'color'``, or ``'color_ignore_orientation'`` to leave a photo as
            its sensor saw it. Defaults to ``'color'``.

    Returns:
        np.ndarray: The image, BGR, uint8, ``(H, W, 3)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as an image.
    """
    try:
        image = mmcv.imread(path, flag)
    except FileNotFoundError:
        raise
    except Exception as error:  # each backend of mmcv has errors of its own
        raise ValueError(f'{path} cannot be read as an image') from error
    if image is None:
        raise ValueError(f'{path} cannot be read as an image')
    return image


class NamedSamples(Dataset):
    """The samples of a data set. Whatever fails in loading one, the error names it.

    Args:
        dataset (Dataset): The data set.

    Raises:
        ValueError: When a sample cannot be loaded. The message has its index, its files
            and the reason.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # those of OpenMMLab have it

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            find = getattr(self.dataset, 'get_data_info', None)
            info = find(index) if find is not None else {}
            files = ', '.join(str(info[key]) for key in _PATHS if info.get(key))
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ValueError(
                f'sample {index}{files and f" ({files})"} cannot be loaded: {reason}'
            ) from error


def name_samples(loader: DataLoader) -> DataLoader:
    """Returns a data loader that gives the same batches and names what fails.

    Args:
        loader (DataLoader): A data loader with a sampler and a batch size.
    """
    return DataLoader(
        NamedSamples(loader.dataset),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
    )
