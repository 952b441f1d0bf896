"""``compile`` in a config, with which mmengine compiles the steps of a model."""

import pytest
import torch
from mmengine.utils import digit_version

from ..isolation import NO_WORKERS

CLASSIFIER = 'classification/mdeq-tiny_1xb64_digits.py'


@pytest.fixture
def losses(root, run_tool, workplace, tmp_path, scalars):
    """Trains an unrolled iteration and one at the equilibrium; returns the logs."""

    def train(name, *options):
        run_tool(
            *('train.py', root / 'configs' / CLASSIFIER),
            *('--work-dir', tmp_path / name, *NO_WORKERS, 'randomness.seed=0'),
            *('train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
            *('train_dataloader.batch_size=2', 'train_dataloader.dataset.indices=4'),
            *('val_dataloader.dataset.indices=2', 'model.backbone.num_layers=1'),
            'default_hooks.equilibrium.pretrain_iters=1',
            'model.backbone.forward_solver.max_evals=4',
            'model.backbone.gradient.solver.max_evals=3',
            'default_hooks.logger.interval=1',
            *options,
            cwd=workplace,
        )
        timed = ('time', 'data_time')
        return [
            {key: value for key, value in record.items() if key not in timed}
            for record in scalars(tmp_path / name)
        ]

    return train


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5'),
    reason='torch before 2.5 compiles less of Python',
)
def test_training_is_that_of_a_model_that_is_not_compiled(losses):
    plain = losses('plain')
    assert 'forward_evals' in plain[1]
    compiled = losses('compiled', 'compile.backend=eager')
    assert len(compiled) == len(plain)
    for expected, actual in zip(plain, compiled):
        # The order of some sums is another one.
        assert actual == pytest.approx(expected, rel=1e-2, nan_ok=True)
