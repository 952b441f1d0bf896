"""Fixtures that several test modules use."""

import contextlib
import json
import os
import random
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import mmengine.device.utils
import mmengine.registry
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, Registry
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import mdeq_mm  # noqa: F401  before mmseg, which needs its stand-in for compiled ops
from mdeq_mm.models import MDEQ

from . import pretended_accelerator, shortcuts  # noqa: F401
from .frozen_modules import FrozenModules
from .isolation import isolated, load_tool, run_main, started
from .time_limit import TimeLimit

ROOT = Path(__file__).resolve().parents[1]
# Seconds that a test may take without being marked as slow.
TIME_LIMIT = 5.0
# The same sums on every machine: their order depends on the number of threads.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        '--device',
        default='cuda',
        help='where the tests marked cuda run: cuda; emu, the pretended accelerator; '
        'or another device of torch; default: %(default)s',
    )
    parser.addoption(
        '--write-heads-page',
        action='store_true',
        help='write what test_decode_heads.py finds into docs/en/heads.md',
    )


def pytest_configure(config):
    if config.getoption('--device') == pretended_accelerator.NAME:
        # Before the first test, and mmengine must find it as it finds a GPU.
        try:
            pretended_accelerator.register()
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error
        mmengine.device.utils.DEVICE = pretended_accelerator.NAME
    # Counting the lines that run takes up to as long again.
    limit = TIME_LIMIT * (2 if config.getoption('cov_source', None) else 1)
    config.pluginmanager.register(TimeLimit(limit), 'time_limit')
    config.pluginmanager.register(FrozenModules(), 'frozen_modules')


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin('pytest_cov'):
        # Fast tests shall run the lines alone, and slow ones shall not get slower.
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker('no_cover')
    # Whole runs take longest. They come first, so that all processes end together.
    long = {'integration', 'soak', 'test_device_report.py'}
    items.sort(key=lambda item: long.isdisjoint(item.path.parts))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Takes back what a document registers, since tests register the same names."""
    if item.path.suffix != '.md':
        return (yield)
    registries = [
        value
        for value in vars(mmengine.registry).values()
        if isinstance(value, Registry)
    ]
    before = [dict(registry.module_dict) for registry in registries]
    try:
        return (yield)
    finally:
        for registry, known in zip(registries, before):
            for name, cls in dict(registry.module_dict).items():
                if getattr(cls, '__module__', None) != '__main__':
                    continue
                del registry.module_dict[name]
                if name in known:
                    registry.module_dict[name] = known[name]


@pytest.fixture(scope='session')
def root():
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def device(request):
    """The accelerator that ``--device`` names; tests that ask for it need it."""
    name = request.config.getoption('--device')
    if name == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a GPU')
    return name


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
def _isolated(tmp_path):
    """Every test has a folder of its own, and leaves nothing in mmengine's globals."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with isolated(tmp_path):
        yield


@pytest.fixture(scope='session', name='load_tool')
def _load_tool():
    """Imports a tool by its path under ``tools``."""
    return load_tool


@pytest.fixture(scope='session')
def run_tool():
    """Runs ``main(argv)`` of a tool in this process and returns what it printed."""
    return run_main


@pytest.fixture(scope='session')
def environment():
    """The environment of a user who has activated the virtual environment."""
    return {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'OMP_NUM_THREADS': '1',
    }


@pytest.fixture(scope='session')
def run_process(root, environment):
    """Runs a tool in a process of its own and returns what it printed."""

    def run(tool, *args, cwd, timeout=600, **variables):
        program = sys.executable if tool.endswith('.py') else 'bash'
        command = [program, root / 'tools' / tool, *args]
        with started(command, cwd=cwd, env={**environment, **variables}) as process:
            output = process.communicate(timeout=timeout)[0]
        assert process.returncode == 0, output[-6000:]
        return output

    return run


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


@DATASETS.register_module(force=True)
class Images(Dataset):
    """Random images whose augmentation draws from numpy's and torch's generators."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 16, 16, generator=generator)
        return image * np.random.rand() + 0.1 * torch.rand(1), index % 3


@MODELS.register_module(force=True)
class Classifier(BaseModel):
    def __init__(self, **kwargs):
        super().__init__()
        arch = dict(channels=(8, 8), num_groups=2, expansion=1)
        solver = dict(type='BroydenSolver', max_evals=6)
        self.backbone = MDEQ(
            arch=arch,
            num_layers=2,
            forward_solver=solver,
            gradient=dict(type='ImplicitGradient', solver=solver),
            **kwargs,
        )
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 3)

    def forward(self, images, labels, mode='tensor'):
        features = self.backbone(images)[0].mean(dim=(2, 3))
        loss = nn.functional.cross_entropy(self.fc(self.dropout(features)), labels)
        return dict(loss=loss) if mode == 'loss' else [loss]


@METRICS.register_module(force=True)
class RandomMetric(BaseMetric):
    """Draws a random number, as a validation may."""

    def process(self, data_batch, data_samples):
        self.results.append(torch.rand(1).item())

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results))


OPTIM_WRAPPER = dict(optimizer=dict(type='SGD', lr=0.1))


@pytest.fixture
def make_runner(tmp_path):
    """Makes a runner around a tiny MDEQ, epoch- or iteration-based."""
    runners = []

    def make(hooks, by_epoch=False, length=6, model=None, workers=0, **kwargs):
        loader = dict(
            batch_size=4,
            num_workers=workers,
            dataset=dict(type='Images'),
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
            collate_fn=dict(type='default_collate'),
        )
        val_loader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
        kind, unit = (
            ('EpochBasedTrainLoop', 'epochs')
            if by_epoch
            else ('IterBasedTrainLoop', 'iters')
        )
        interval = 1 if by_epoch else 3
        runner = Runner(
            model=model or dict(type='Classifier', dropout=0.2),
            work_dir=str(tmp_path / 'work_dir'),
            train_dataloader=loader,
            val_dataloader=val_loader,
            train_cfg={'type': kind, f'max_{unit}': length, 'val_interval': interval},
            val_cfg=dict(),
            optim_wrapper=kwargs.pop('optim_wrapper', OPTIM_WRAPPER),
            val_evaluator=kwargs.pop('val_evaluator', dict(type='RandomMetric')),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=kwargs.pop('log_interval', 1)),
                checkpoint={
                    'type': 'CheckpointHook',
                    'interval': interval,
                    'by_epoch': by_epoch,
                    **kwargs.pop('checkpoint', {}),
                },
            ),
            custom_hooks=hooks,
            log_processor=dict(by_epoch=by_epoch),
            randomness=dict(seed=3),
            experiment_name=f'test-{tmp_path.name}-{len(runners)}',
            default_scope='mmengine',
            log_level='WARNING',
            **kwargs,
        )
        runners.append(weakref.ref(runner))
        return runner

    yield make
    # If the garbage collector takes the iterator of a loop, its workers are not told to
    # end, and torch waits five seconds for each.
    for reference in runners:
        runner = reference()
        if runner is not None and not isinstance(runner._train_loop, dict):
            vars(runner._train_loop).pop('dataloader_iterator', None)


@pytest.fixture
def calm():
    """Makes the cells of a model contractions, so that equilibria exist.

    Small weights and large biases in the norms let little of the state through.
    """

    def apply(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm) and module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.1, 0.3, generator=generator)
                    module.bias.normal_(0, 1, generator=generator)
        return model

    return apply
