"""Fixtures that several test modules use."""

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mdeq_mm  # noqa: F401  before mmseg, which needs its stand-in for compiled ops

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root():
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def shared():
    """The folder of reference data that stands beside the checkout."""
    path = ROOT.parent / 'shared'
    if not path.is_dir():
        if os.environ.get('MDEQ_MM_REQUIRE_SHARED') == '1':
            pytest.fail(f'{path} is required and absent')
        pytest.skip(f'{path} is absent')
    return path


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope='session', params=['tiny2', 'micro4', 'microseg'])
def golden(request, shared):
    """One model of the reference data: state, gradients, reference values, settings."""

    def load(kind):
        path = shared / 'golden' / f'{request.param}.{kind}.npz'
        arrays = np.load(path, allow_pickle=False)
        tensors = {}
        for key in arrays:
            array = arrays[key]
            if array.dtype.kind == 'f':
                tensors[key] = torch.from_numpy(array).double()
            elif array.dtype.kind == 'i':
                tensors[key] = torch.from_numpy(array)
            else:
                tensors[key] = array
        return tensors

    ref = load('ref')
    config = json.loads(str(ref['config_json']))
    return SimpleNamespace(
        name=request.param,
        task='classification' if config['task'] == 'cls' else 'segmentation',
        config=config,
        n_branches=config['num_branches'],
        state=load('state'),
        grad=load('grad'),
        ref=ref,
    )


@pytest.fixture
def saved_bytes():
    """A context that counts the bytes autograd saves for backward, parameters left out.

    Tensors that share a storage count once.
    """

    @contextlib.contextmanager
    def count():
        storages = {}

        def pack(tensor):
            if not (tensor.is_leaf and isinstance(tensor, torch.nn.Parameter)):
                storage = tensor.untyped_storage()
                # The storage is kept, lest another one be given its address.
                storages[storage.data_ptr()] = storage
            return tensor

        result = SimpleNamespace(total=0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield result
        result.total = sum(storage.nbytes() for storage in storages.values())

    return count
