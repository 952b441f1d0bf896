from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn

from mdeq_mm.deq import EquilibriumLayer
from mdeq_mm.models import MultiTaskModel

from ...multi_task import BACKBONES, MDEQ, batches, model_config


def build(backbone=MDEQ, **settings):
    model = MODELS.build(model_config(backbone, **settings))
    model.init_weights()
    return model


@pytest.fixture(params=BACKBONES)
def model(request):
    return build(BACKBONES[request.param])


def losses_of(model, data):
    torch.manual_seed(1)  # the same dropout
    data = model.data_preprocessor(deepcopy(data), True)
    return model._run_forward(data, mode='loss')


def predictions_of(model, data):
    with torch.no_grad():
        return model.val_step(deepcopy(data))


def values(losses):
    return {name: value.detach() for name, value in losses.items()}


def scores_of(predictions):
    """Class scores or logits of a list of samples."""
    return torch.stack(
        [
            sample.pred_score if 'pred_score' in sample else sample.seg_logits.data
            for sample in predictions
        ]
    )


def count_calls(module):
    calls = []
    handle = module.register_forward_hook(lambda *args: calls.append(1))
    return calls, handle


class TestTraining:
    def test_losses_are_those_of_the_stock_models(self, model):
        data = batches(classes=3, pixels=2)
        for task in data:
            single = model.extract(task).train()
            expected = values(losses_of(single, data[task]))
            actual = values(losses_of(model.train(), {task: data[task]}))
            assert actual.keys() == {f'{task}/{name}' for name in expected}
            for name, value in expected.items():
                assert torch.equal(actual[f'{task}/{name}'], value), name

    def test_gradients_are_the_weighted_sum(self):
        model = build(dict(MDEQ, dropout=0.0), loss_weights=dict(pixels=0.25)).train()
        model.tasks.pixels.decode_head.dropout = None
        data = batches(classes=3, pixels=2)
        expected = {}
        for task, weight in dict(classes=1.0, pixels=0.25).items():
            single = model.extract(task).train()
            loss, _ = single.parse_losses(losses_of(single, data[task]))
            (weight * loss).backward()
            for name, parameter in single.named_parameters():
                key = name if name.startswith('backbone.') else f'tasks.{task}.{name}'
                expected[key] = expected.get(key, 0) + parameter.grad
        losses = losses_of(model, data)
        total, logged = model.parse_losses(losses)
        total.backward()
        parts = [
            value for name, value in logged.items() if '/' in name and 'loss' in name
        ]
        torch.testing.assert_close(logged['loss'], sum(parts))
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)

    def test_accuracy_is_not_weighted(self):
        data = batches(pixels=2)
        one, two = (
            values(losses_of(build(loss_weights=weights).eval(), data))
            for weights in (dict(), dict(pixels=2.0))
        )
        assert {'pixels/decode.acc_seg', 'pixels/decode.loss_ce'} == set(one)
        assert 0 <= two['pixels/decode.acc_seg'] <= 100

    def test_backbone_runs_once_per_batch(self, model):
        calls, handle = count_calls(model.backbone)
        with handle:
            losses_of(model.train(), batches(classes=3, pixels=2))
        assert len(calls) == 2

    def test_equilibrium_is_found_once_per_batch(self):
        """As many evaluations as the stock models need together."""
        model = build().train()
        data = batches(classes=3, pixels=2)

        def evaluations(model, data):
            (layer,) = (m for m in model.modules() if isinstance(m, EquilibriumLayer))
            calls, handle = count_calls(layer.cell)
            with handle:
                losses = losses_of(model, data)
                model.parse_losses(losses)[0].backward()
            return len(calls)

        single = [evaluations(model.extract(task).train(), data[task]) for task in data]
        assert single[0] == single[1] >= 6
        assert evaluations(model, data) == sum(single)


class TestSharing:
    def test_every_parameter_is_registered_once(self, model):
        once = dict(model.named_parameters())
        assert (
            once.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
        )
        keys = set(model.state_dict())
        backbone = {f'backbone.{key}' for key in model.backbone.state_dict()}
        heads, statistics = (
            {
                key
                for key in keys
                if key.startswith((f'{part}.classes.', f'{part}.pixels.'))
            }
            for part in ('tasks', 'statistics')
        )
        assert keys == backbone | heads | statistics
        # Mean, variance and count, for each of two tasks.
        n_norms = sum(key.endswith('running_mean') for key in backbone)
        assert len(statistics) == 2 * 3 * n_norms > 0
        assert heads
        assert not any('backbone' in key for key in heads)

    def test_state_dict_is_loaded_strictly(self, model):
        other = build(BACKBONES[type(model.backbone).__name__])
        other.load_state_dict(model.state_dict())
        data = batches(classes=2)
        expected, actual = (predictions_of(m.eval(), data) for m in (model, other))
        assert torch.equal(scores_of(actual['classes']), scores_of(expected['classes']))

    @pytest.mark.parametrize('copied', ['deepcopy', 'average'])
    def test_a_copy_has_its_own_backbone(self, copied):
        model = build().eval()
        if copied == 'deepcopy':
            other = deepcopy(model)
        else:
            other = ExponentialMovingAverage(model).module.eval()
        data = batches(classes=2, pixels=1)
        before = predictions_of(other, data)
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.zero_()
        for task in data:
            after = scores_of(predictions_of(other, data)[task])
            assert torch.equal(after, scores_of(before[task]))
            changed = scores_of(predictions_of(model, data)[task])
            assert not torch.equal(after, changed)

    def test_another_type_of_numbers(self):
        model = build().eval().to(torch.float64)
        outputs = model(
            data=dict(classes=dict(inputs=torch.rand(1, 3, 32, 32).double()))
        )
        assert outputs['classes'][0].dtype == torch.float64

    def test_backbone_is_replaced(self):
        """As wrappers do it, and hooks for a while."""
        model = build().eval()
        data = batches(classes=2)
        wrapper = nn.Sequential(model.backbone)
        expected = scores_of(predictions_of(model, data)['classes'])
        model.backbone = wrapper
        calls, handle = count_calls(wrapper)
        with handle:
            actual = scores_of(predictions_of(model, data)['classes'])
        assert torch.equal(actual, expected)
        assert len(calls) == 1


class TestStatistics:
    """Each task has running statistics of its own in the norms of the backbone."""

    @staticmethod
    def running(module):
        return {
            name: buffer.clone()
            for name, buffer in module.named_buffers()
            if 'running_' in name
        }

    def test_are_those_of_a_single_training(self, model):
        """The images of the other task do not count."""
        data = batches(classes=3, pixels=2)
        single = {task: model.extract(task).train() for task in data}
        for _ in range(2):
            for task in data:
                losses_of(single[task], data[task])
            losses_of(model.train(), data)
        for task in data:
            expected = self.running(single[task].backbone)
            assert expected
            actual = self.running(model.extract(task).backbone)
            assert actual.keys() == expected.keys()
            for name in expected:
                assert torch.equal(actual[name], expected[name]), name
        one, two = (self.running(model.extract(task).backbone) for task in data)
        assert not any(torch.equal(one[name], two[name]) for name in one)

    def test_of_the_backbone_itself_stay(self, model):
        before = self.running(model.backbone)
        losses_of(model.train(), batches(classes=3, pixels=2))
        after = self.running(model.backbone)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_stay_after_an_error(self, model):
        before = self.running(model.backbone)

        def fail(*args):
            raise RuntimeError('out of memory')

        failing = model.backbone.register_forward_hook(fail)
        with failing, pytest.raises(RuntimeError, match='out of memory'):
            losses_of(model.train(), batches(classes=3))
        after = self.running(model.backbone)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert predictions_of(model.eval(), batches(classes=2))

    def test_begin_as_those_of_the_backbone(self):
        """As where ``init_cfg`` of the backbone loads a checkpoint."""
        model = MODELS.build(model_config(BACKBONES['ResNet']))
        with torch.no_grad():
            for name, buffer in model.backbone.named_buffers():
                if 'running_' in name:
                    buffer.add_(1)
        model.init_weights()
        expected = self.running(model.backbone)
        actual = self.running(model.extract('pixels').backbone)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)

    def test_stay_when_a_second_training_begins(self):
        model = build()
        losses_of(model.train(), batches(pixels=2))
        before = self.running(model.statistics)
        model.init_weights()
        after = self.running(model.statistics)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_several_threads(self):
        """One predicts for one task, while another does for another task."""
        model = build(BACKBONES['ResNet'])
        data = batches(classes=3, pixels=2)
        for _ in range(3):
            losses_of(model.train(), data)
        model.eval()
        expected = {task: scores_of(predictions_of(model, data)[task]) for task in data}
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                (task, pool.submit(predictions_of, model, {task: data[task]}))
                for task in [*data] * 20
            ]
            for task, job in jobs:
                assert torch.equal(scores_of(job.result()[task]), expected[task])


class TestExtract:
    def test_predictions_are_identical(self, model):
        model.eval()
        data = batches(classes=3, pixels=2)
        whole = predictions_of(model, data)
        for task in data:
            single = model.extract(task)
            assert type(single) is type(model.tasks[task])
            assert type(single.backbone) is type(model.backbone)
            actual = predictions_of(single, data[task])
            assert torch.equal(scores_of(actual), scores_of(whole[task]))

    def test_leaves_the_model_alone(self):
        model = build()
        keys = list(model.state_dict())
        single = model.extract('classes')
        assert not {p.data_ptr() for p in single.parameters()} & {
            p.data_ptr() for p in model.parameters()
        }
        assert list(model.state_dict()) == keys

    def test_unknown_task(self):
        with pytest.raises(ValueError, match='are classes, pixels, got boxes'):
            build().extract('boxes')


class TestErrors:
    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            (dict(tasks={}), 'tasks must be a dict with a model per name'),
            (dict(tasks=[dict()]), 'tasks must be a dict with a model per name'),
            (dict(tasks=dict(a=3)), 'tasks.a must be a dict, got 3'),
            (dict(tasks={'a b': dict()}), "identifier of Python .*got 'a b'"),
            (dict(tasks=dict(glossy=dict())), 'without "loss" in it, .*got \'glossy\''),
            (dict(tasks=dict(keys=dict())), "attribute of a ModuleDict, got 'keys'"),
            (
                dict(tasks=dict(a=dict(backbone=dict()))),
                'tasks.a must have no backbone: .* argument of the MultiTaskModel',
            ),
            (
                dict(tasks=dict(a=dict(pretrained='torchvision://resnet18'))),
                'tasks.a must have no pretrained: .* its init_cfg',
            ),
            (dict(loss_weights=dict(boxes=1.0)), 'are classes, pixels, got boxes'),
            (
                dict(loss_weights=dict(pixels=-1)),
                r'loss_weights.pixels must be a number .*got -1',
            ),
        ],
    )
    def test_bad_settings(self, settings, message):
        settings = {**model_config(), **settings}
        settings.pop('type')
        with pytest.raises((TypeError, ValueError), match=message):
            MultiTaskModel(**settings)

    def test_data_of_an_unknown_task(self):
        data = dict(boxes=batches(classes=1)['classes'])
        with pytest.raises(ValueError, match='are classes, pixels, got boxes'):
            build().val_step(data)
