import copy
import gc
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mdeq_mm.engine import EquilibriumVisualizationHook
from mdeq_mm.engine.hooks import equilibrium_visualization_hook

HOOK = dict(type='EquilibriumVisualizationHook', num_images=1)
NAMES = ['residuals', 'slow_places', 'features']


class Plain(BaseModel):
    """A model without equilibrium."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, images, labels, mode='tensor'):
        logits = self.fc(images.mean((2, 3)))
        loss = nn.functional.cross_entropy(logits, labels)
        return dict(loss=loss) if mode == 'loss' else [loss]


class Drawn:
    """A visualizer that keeps what it is given."""

    def __init__(self):
        self.images = []

    def add_image(self, name, image, step):
        self.images.append((name, image, step))


@pytest.fixture
def model():
    return dict(type='Classifier', dropout=0.2)


@pytest.fixture
def validate(make_runner, make_fake_runner):
    """Runs the validations of a hook by hand, over batches of some sizes."""

    def run(hook, n_validations=1, sizes=(2, 2), batch=None, n_passes=1):
        model = make_runner([]).model.eval()
        runner = make_fake_runner(model, visualizer=Drawn(), iter=7)
        hook.before_run(runner)
        for _ in range(n_validations):
            hook.before_val(runner)
            for number, size in enumerate(sizes):
                hook.before_val_iter(runner, batch_idx=number)
                with torch.no_grad():
                    for _ in range(n_passes):
                        model(torch.rand(size, 3, 16, 16), torch.zeros(size).long())
                hook.after_val_iter(runner, number, batch)
        return runner

    return run


class TestRunner:
    def test_two_validations(self, make_runner, n_observers):
        """Each backend gets one picture of each kind and validation."""
        backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
        runner = make_runner(
            [dict(HOOK)],
            length=6,
            visualizer=dict(type='Visualizer', vis_backends=backends),
        )
        runner.train()
        runner.visualizer.close()
        events = EventAccumulator(str(Path(runner._log_dir) / 'vis_data')).Reload()
        for name in NAMES:
            images = events.Images(f'equilibrium_{name}_0')
            assert [image.step for image in images][-1] == 6
        folder = Path(runner._log_dir) / 'vis_data/vis_image'
        expected = {f'equilibrium_{n}_0_{i}.png' for n in NAMES for i in (3, 6)}
        assert {path.name for path in folder.iterdir()} == expected
        for path in folder.iterdir():
            assert cv2.imread(str(path)).std() > 10
        assert n_observers(runner.model) == 0

    def test_changes_nothing(self, make_runner, monkeypatch):
        """Parameters, metrics and random numbers are those of a run without it."""

        def finish(hooks):
            runner = make_runner(
                [dict(type='ImplicitGradientHook'), *hooks],
                length=6,
                val_evaluator=[
                    dict(type='RandomMetric'),
                    dict(type='SolverStatistics'),
                ],
            )
            model = runner.train()
            values = {
                key: history.data[0].tolist()
                for key, history in runner.message_hub.log_scalars.items()
                if 'time' not in key and 'eta' not in key
            }
            numbers = random.random(), np.random.rand(), torch.rand(1).item()
            return copy.deepcopy(model.state_dict()), values, numbers

        without, with_it = finish([]), finish([HOOK])
        assert without[1:] == with_it[1:]
        assert 'val/solver/residual' in without[1]
        for key, value in without[0].items():
            assert torch.equal(with_it[0][key], value), key

    def test_mode_of_the_model(self, make_runner):
        """What follows in the iteration finds the model in evaluation mode."""
        found = []

        class Look(Hook):
            priority = 'LOWEST'

            def after_val_iter(self, runner, *args, **kwargs):
                found.append((runner.model.training, torch.is_grad_enabled()))

        runner = make_runner([HOOK, Look()])
        runner.val()
        assert found == [(False, False)] * 3

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (lambda model: Plain(), 'needs a model with an EquilibriumLayer.*Plain'),
            (lambda model: dict(model, frozen_stages=1), 'of Classifier is frozen'),
        ],
    )
    def test_nothing_to_follow(self, make_runner, model, change, message):
        runner = make_runner([HOOK], model=change(model))
        with pytest.raises(
            ValueError, match=f'EquilibriumVisualizationHook.*{message}'
        ):
            runner.train()
        assert runner.iter == 0

    def test_frozen_model_can_be_validated(self, make_runner, model):
        runner = make_runner([HOOK], model=dict(model, frozen_stages=1))
        runner.val()


class TestHook:
    def test_first_images(self, validate):
        hook = EquilibriumVisualizationHook(num_images=3)
        images = validate(hook).visualizer.images
        names = [f'equilibrium_{name}_{k}' for k in range(3) for name in NAMES]
        assert [name for name, _, _ in images] == names
        assert {step for _, _, step in images} == {7}

    def test_fewer_images_than_wanted(self, validate):
        hook = EquilibriumVisualizationHook(num_images=9)
        assert len(validate(hook, sizes=(2,)).visualizer.images) == 2 * 3

    def test_interval(self, validate):
        hook = EquilibriumVisualizationHook(interval=3, num_images=1)
        assert len(validate(hook, n_validations=4).visualizer.images) == 2 * 3

    def test_other_processes_draw_nothing(self, validate, monkeypatch):
        monkeypatch.setattr(
            equilibrium_visualization_hook, 'is_main_process', lambda: False
        )
        assert validate(EquilibriumVisualizationHook()).visualizer.images == []

    @pytest.mark.parametrize('n_passes', [1, 2])
    def test_image_stands_beside_the_map(self, validate, n_passes):
        """But not where the map is that of the first of several windows."""
        green = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        green[:, 1] = 250
        hook = EquilibriumVisualizationHook(num_images=1)
        runner = validate(hook, batch=dict(inputs=green), n_passes=n_passes)
        pictures = {name: image for name, image, _ in runner.visualizer.images}
        picture = pictures['equilibrium_slow_places_0']
        assert ((picture == (0, 250, 0)).all(2).mean() > 0.2) == (n_passes == 1)

    @pytest.mark.parametrize('inputs', [dict(text='a cat'), [], None])
    def test_batch_without_images(self, validate, inputs):
        hook = EquilibriumVisualizationHook(num_images=1)
        runner = validate(hook, sizes=(1,), batch=dict(inputs=inputs))
        assert len(runner.visualizer.images) == 3

    def test_nothing_is_kept(self, validate, n_observers):
        hook = EquilibriumVisualizationHook(num_images=1)
        runner = validate(hook)
        assert n_observers(runner.model) == 0
        assert hook._observed == []

    def test_after_an_interrupted_validation(
        self, make_runner, make_fake_runner, n_observers
    ):
        hook = EquilibriumVisualizationHook()
        runner = make_fake_runner(make_runner([]).model.eval())
        hook.before_val(runner)
        hook.before_val_iter(runner, batch_idx=0)
        assert n_observers(runner.model) == 1
        hook.before_train(runner)
        assert n_observers(runner.model) == 0
        hook.before_val(runner)
        hook.before_val_iter(runner, batch_idx=0)
        del hook
        gc.collect()
        assert n_observers(runner.model) == 0

    @pytest.mark.parametrize('name', ['interval', 'num_images'])
    def test_bad_arguments(self, name):
        with pytest.raises(
            ValueError, match=f'{name} must be an integer of at least 1'
        ):
            EquilibriumVisualizationHook(**{name: 0})
