"""Checkpoints written before the redesign load, and give bitwise the same output.

``data/written_before.json`` was written by the code before the redesign. For each
family of models it holds a config, a digest of the keys of the state dict, and digests
of outputs and gradients for weights that follow from the keys, so that no weights are
stored.

Kernels of another machine or another torch may round differently. The digest of a probe
in plain torch stands beside the others: where it is not the same, the outputs are
compared by summary numbers instead.
"""

import copy
import hashlib
import json
import math
from collections import OrderedDict
from pathlib import Path
from zlib import crc32

import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch.nn import functional as F

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Equilibrium,
    PicardSolver,
    equilibrium_layers,
)

BEFORE = json.loads((Path(__file__).parent / 'data/written_before.json').read_text())
SOLVERS = dict(broyden=BroydenSolver, anderson=AndersonSolver, picard=PicardSolver)


def digest(*tensors):
    """Digest of the raw bytes of tensors."""
    parts = (tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(b''.join(parts)).hexdigest()[:16]


def summary(*tensors):
    """Mean, mean size and deviation of the numbers of tensors taken together."""
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    values = (flat.mean(), flat.abs().mean(), flat.std())
    return [float(f'{value:.7g}') for value in values]


def numbers(name, shape):
    """Numbers in [-1, 1) that follow from a name, in integer arithmetic alone.

    The generators of torch may draw other numbers on another machine.
    """
    x = torch.arange(math.prod(shape)) + crc32(name.encode())
    for _ in range(2):
        x = ((x >> 16 ^ x) * 0x45D9F3B) & 0xFFFFFFFF
    return ((x >> 8).float() / 2**23 - 1).view(shape)


def weight(key, like, gain):
    """The tensor of a key.

    The norms of the cell decide how much of the state passes through it: the larger the
    gain, the longer a solve takes.
    """
    if not like.is_floating_point():
        return torch.zeros_like(like)
    x = numbers(key, like.shape)
    in_cell = 'equilibrium.cell.' in key
    if key.endswith(('running_var', '.original0')):
        return 1 + x / 2
    if like.dim() > 1:
        return x * math.sqrt(3 / math.prod(like.shape[1:]))
    if key.endswith(('bias', 'running_mean')):
        return x * 1.5 if in_cell else x / 4
    return (x / 16 + 0.125) * gain if in_cell else x / 2 + 1


def weights(model, gain):
    return OrderedDict((k, weight(k, v, gain)) for k, v in model.state_dict().items())


def described_keys(model):
    listed = sorted((k, list(v.shape)) for k, v in model.state_dict().items())
    text = json.dumps(listed).encode()
    return dict(count=len(listed), sha256=hashlib.sha256(text).hexdigest()[:16])


def probe():
    """Digest of what the kernels a model uses make of fixed numbers."""
    x = numbers('x', (2, 16, 12, 12)).requires_grad_()
    taps = numbers('taps', (16, 16, 3, 3)).requires_grad_()
    y = F.group_norm(F.conv2d(x, taps, padding=1), 4)
    z = F.batch_norm(F.conv2d(y, taps, stride=2, padding=1), None, None, training=True)
    z = F.conv2d(z, numbers('one', (16, 16, 1, 1)))
    gradients = torch.autograd.grad(z.square().mean(), (x, taps))
    rows = numbers('rows', (2, 7, 2304))
    products = torch.bmm(y.flatten(1).unsqueeze(1), rows.mT)
    added = torch.baddbmm(y.flatten(1).unsqueeze(1), products, rows)
    gram = (rows @ rows.mT).double()
    factor = torch.linalg.cholesky(gram)
    norms = torch.linalg.vector_norm(rows, dim=2)
    return digest(y, z, *gradients, products, added, gram, factor, norms)


def draws():
    """Digest of dropout masks, which some versions of torch draw otherwise."""
    torch.manual_seed(0)
    return digest(torch.empty(2, 8).bernoulli_(0.75))


def outputs_of(model, images):
    found = model(images)
    return [found] if isinstance(found, torch.Tensor) else list(found)


def gradients_of(model, images):
    """Gradients of all parameters in training mode, and what it makes of buffers."""
    torch.manual_seed(0)
    model.train()
    outputs = outputs_of(model, images)
    directions = [numbers(f'direction {i}', o.shape) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, directions)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*gradients, *(b for b in model.buffers() if b.is_floating_point())]


@pytest.fixture(autouse=True)
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope='module', params=list(BEFORE['families']))
def family(request):
    return BEFORE['families'][request.param]


@pytest.fixture(scope='module')
def model(family, tmp_path_factory):
    """A model of a family with the weights of a checkpoint of that time."""
    model = MODELS.build(family['model']).eval()
    path = tmp_path_factory.mktemp('checkpoints') / 'before.pth'
    state = weights(model, family['gain'])
    torch.save(dict(state_dict=state, meta=dict()), path)
    load_checkpoint(model, str(path), strict=True)
    return model


@pytest.fixture
def images(family):
    return numbers('images', family['images'])


def assert_as_before(tensors, expected):
    if probe() == BEFORE['probe']:
        assert digest(*tensors) == expected['sha256']
    scale = max(map(abs, expected['summary']))
    for found, before in zip(summary(*tensors), expected['summary']):
        assert found == pytest.approx(before, rel=1e-4, abs=1e-4 * scale)


def test_keys_and_shapes(family, model):
    assert described_keys(model) == family['keys']


def test_equilibrium(family, model, images):
    (layer,) = equilibrium_layers(model)
    assert isinstance(layer.mode, Equilibrium)
    for name, solver in SOLVERS.items():
        with torch.no_grad(), layer.using(solver=solver()):
            outputs = outputs_of(model, images)
        assert_as_before(outputs, family['outputs'][name])


def test_unrolled(family, model, images):
    (layer,) = equilibrium_layers(model)
    with torch.no_grad(), layer.using(mode=layer.unrolled):
        outputs = outputs_of(model, images)
    assert_as_before(outputs, family['outputs']['unrolled'])


@pytest.mark.parametrize('mode', ['configured', 'unrolled'])
def test_gradients(family, model, images, mode):
    if family['dropout'] and draws() != BEFORE['draws']:
        pytest.skip('torch draws other dropout masks here')
    model = copy.deepcopy(model)  # training changes buffers
    (layer,) = equilibrium_layers(model)
    layer.initial_guess.requires_grad_(False)
    settings = dict(mode=layer.unrolled) if mode == 'unrolled' else dict()
    with layer.using(**settings):
        found = gradients_of(model, images)
    assert_as_before(found, family['gradients'][mode])
