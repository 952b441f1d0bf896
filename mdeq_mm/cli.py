"""Arguments that several command-line tools share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from mmengine.config import DictAction

from .model_index import model_files


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value; dots join nested keys, '
        'lists are written key="[a,b]"',
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds ``config`` and ``checkpoint``, and ``--allow-partial``.

    The name of a model whose weights come with this package stands for both.
    """
    parser.add_argument(
        'config', help='config file, or the name of a model that comes with its weights'
    )
    parser.add_argument(
        'checkpoint',
        nargs='?',
        action=_Checkpoint,
        help='checkpoint file, right behind the config; none behind a name',
    )
    add_allow_partial(parser)


def add_allow_partial(parser: argparse.ArgumentParser) -> None:
    """Adds ``--allow-partial``."""
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='warn of weights that are missing, unexpected or misshapen, instead of '
        'ending with an error',
    )


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Adds ``--shape``, the size of the images."""
    parser.add_argument(
        '--shape',
        type=int_of_at_least(1),
        nargs=2,
        metavar=('H', 'W'),
        help='size of the images; default: the size of the data_preprocessor, or '
        '224 224 if it has none',
    )


class _Checkpoint(argparse.Action):
    """Looks up a name that stands alone, in place of a config and a checkpoint."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        if values is None:
            try:
                namespace.config, values = model_files(namespace.config)
            except ValueError as error:
                parser.error(f'no checkpoint behind {namespace.config}: {error}')
        namespace.checkpoint = values


def int_of_at_least(least: int) -> Callable[[str], int]:
    """Returns an argument type: an integer that is large enough."""

    def convert(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f'must be at least {least}, got {text}')
        return number

    convert.__name__ = 'int'  # how argparse calls the type where the text is no number
    return convert


def positive_float(text: str) -> float:
    """Converts an argument that must be a number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'must be positive, got {text}')
    return number


def non_negative_float(text: str) -> float:
    """Converts an argument that must be a number of at least 0."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f'must not be negative, got {text}')
    return number


def fraction(text: str) -> float:
    """Converts an argument that must be a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'must be in [0, 1], got {text}')
    return number
