import pytest
import torch
from mmengine.runner import save_checkpoint
from torch import nn, rand
from torch.utils.data import DataLoader

from mdeq_mm import apis
from mdeq_mm.benchmark import (
    STOCK_BACKBONES,
    Case,
    Subject,
    backbones,
    count_work,
    load_with_images,
    measure_models,
    run_case,
)

OPTIONS = {
    'model.backbone.dropout': 0,
    'model.backbone.forward_solver.max_evals': 4,
    'model.backbone.gradient.solver.max_evals': 3,
}


class Tuple(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return (self.model(x),)


class TestSubject:
    def test_config(self, config):
        subject = Subject(config, OPTIONS)
        backbone = subject.build()
        assert subject.label == 'mdeq-tiny_2xb64_cifar10'
        assert subject.cases() == tuple(Case)
        assert backbone.equilibrium.configured.solver.max_evals == 4
        # As the paper initialises it.
        assert backbone.stem[0].conv.weight.std().item() == pytest.approx(0.01, rel=0.2)

    def test_weights_of_a_file_are_not_needed(self, config):
        pretrained = dict(type='Pretrained', checkpoint='absent.pth')
        Subject(config, {'model.backbone.init_cfg': pretrained}).build()

    @pytest.mark.parametrize('name', STOCK_BACKBONES)
    def test_stock_backbone(self, name):
        subject = Subject(name)
        backbone = subject.build()
        assert subject.label == name
        assert subject.cases() == (Case.INFERENCE, Case.TRAINING)
        assert type(backbone).__module__.startswith('mmpretrain.')


class TestRunCase:
    @pytest.mark.parametrize(
        ('case', 'evaluations', 'products'),
        [
            (Case.EVALUATION, 1, 0),
            (Case.INFERENCE, 4, 0),
            (Case.APPLICATION, 1, 0),
            (Case.TRAINING, 4 + 1, 3),
        ],
    )
    def test_work(self, config, case, evaluations, products):
        backbone = Subject(config, OPTIONS).build()
        layer = backbone.equilibrium
        before = layer.mode
        with count_work(layer) as work:
            run_case(backbone, rand(1, 3, 16, 16), case)
        assert (work.evaluations, work.products) == (evaluations, products)
        assert layer.mode is before
        trains = case in (Case.APPLICATION, Case.TRAINING)
        has_gradients = [p.grad is not None for p in backbone.parameters()]
        assert has_gradients == [trains] * len(has_gradients)


class TestMeasureModels:
    def test_counts(self, config):
        subjects = [Subject(config, OPTIONS), Subject('resnet50')]
        measured = measure_models(subjects, rand(2, 3, 16, 16), 1)
        mdeq, resnet = measured[subjects[0].label], measured['resnet50']
        assert mdeq['inference']['evaluations'] == 4
        assert mdeq['inference']['products'] == 0
        assert mdeq['training']['evaluations'] == 4 + 1
        assert mdeq['training']['products'] == 3
        assert set(resnet['training']) == {'seconds', 'rounds'}
        assert resnet['parameters'] == 23_508_032  # torchvision's, without fc

    def test_saved_bytes(self, monkeypatch):
        # A convolution saves its input, a ReLU its output: 2x3x8x8 and 2x4x8x8 floats.
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
        model.append(nn.Unflatten(1, (4, 8, 8)))
        monkeypatch.setattr(Subject, 'build', lambda self: Tuple(model))
        measured = measure_models([Subject('mine')], rand(2, 3, 8, 8), 1)
        assert measured['mine']['saved_bytes'] == 4 * 2 * 64 * (3 + 4)
        assert measured['mine']['parameters'] == 16


class TestLoadWithImages:
    @pytest.fixture
    def checkpoint(self, config, tmp_path):
        model = apis.build_model(apis.load_config(config))
        nn.init.constant_(model.backbone.stem[0].conv.weight, 0.5)
        path = tmp_path / 'model.pth'
        save_checkpoint(dict(state_dict=model.state_dict()), str(path))
        return str(path)

    def test_fresh(self, config):
        backbone, images = load_with_images(config, OPTIONS, batch_size=3)
        assert not backbone.training
        assert images.shape == (3, 3, 224, 224)
        assert backbone.equilibrium.configured.solver.max_evals == 4

    def test_checkpoint_and_random_images(self, config, checkpoint):
        backbone, images = load_with_images(config, None, checkpoint, (16, 24))
        assert (backbone.stem[0].conv.weight == 0.5).all()
        assert images.shape == (2, 3, 16, 24)

    def test_checkpoint_and_its_images(self, config, checkpoint, monkeypatch):
        stored = torch.full((5, 3, 8, 8), 125.307)
        seen = []

        def build(cfg):
            seen.append(cfg.test_dataloader.batch_size)
            return DataLoader(
                list(stored), batch_size=5, collate_fn=lambda x: dict(inputs=x)
            )

        monkeypatch.setattr(backbones, 'build_test_loader', build)
        backbone, images = load_with_images(config, None, checkpoint, batch_size=5)
        assert seen == [5]
        assert images.shape == stored.shape
        assert images[:, 0].abs().max() < 1e-4  # normalised with the mean of CIFAR-10
        assert not backbone.training
