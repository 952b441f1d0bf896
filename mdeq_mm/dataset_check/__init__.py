"""A check of data sets, which stock OpenMMLab lacks. Nothing here is about equilibria.

It opens every sample of the data sets of a config and says what is wrong, and where.
"""

from .datasets import build_datasets
from .samples import CheckedDataset, SampleFindings, abbreviate
from .splits import (
    SPLITS,
    Finding,
    Split,
    check_splits,
    find_duplicates,
    find_missing_classes,
    select_splits,
)

__all__ = [
    'SPLITS',
    'CheckedDataset',
    'Finding',
    'SampleFindings',
    'Split',
    'abbreviate',
    'build_datasets',
    'check_splits',
    'find_duplicates',
    'find_missing_classes',
    'select_splits',
]
