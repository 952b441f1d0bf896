"""The feature maps of a backbone as modules with names, for tools that ask for one."""

from types import SimpleNamespace

import mmpretrain.models  # noqa: F401
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

from mdeq_mm.deq import PicardSolver, Unrolled
from mdeq_mm.models import MDEQ

pytestmark = pytest.mark.versions

SMALL = dict(channels=(8, 16), num_groups=4, expansion=2)
SOLVER = dict(type='BroydenSolver', max_evals=12, tol=1e-4)
BACKBONE = dict(
    type='MDEQ',
    arch=SMALL,
    forward_solver=SOLVER,
    gradient=dict(type='ImplicitGradient', solver=SOLVER),
)
# The backbone, its channels, and the layer that makes the map which the head gets.
CLASSIFIERS = dict(
    MDEQ=(BACKBONE, 16, 'backbone.outputs.1'),
    # The stock control.
    ResNet=(dict(type='ResNet', depth=18), 512, 'backbone.layer4'),
)


def classifier(backbone, channels):
    cfg = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=channels),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg).eval()


def observe(layer):
    """What a tool for class activation maps takes from its target layer."""
    seen = SimpleNamespace(activations=[], gradients=[])

    def hook(module, args, output):
        seen.activations.append(output.detach())
        if output.requires_grad:
            output.register_hook(seen.gradients.append)

    seen.handle = layer.register_forward_hook(hook)
    return seen


def grad_cam(seen, category, logits):
    """Selvaraju et al., 2017, as pytorch-grad-cam: first activation, last gradient."""
    logits[:, category].sum().backward()
    activation, gradient = seen.activations[0], seen.gradients[0]
    return (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def small(**kwargs):
    return MDEQ(SMALL, forward_solver=PicardSolver(4), **kwargs)


@pytest.mark.parametrize(('backbone', 'channels', 'target'), CLASSIFIERS.values())
def test_class_activation_map(calm, backbone, channels, target):
    """It is the one of Zhou et al., 2016, for which the head is enough."""
    model = calm(classifier(backbone, channels))
    seen = observe(model.get_submodule(target))
    images = torch.rand(2, 3, 96, 128)
    cam = grad_cam(seen, 3, model(images))
    assert len(seen.activations) == len(seen.gradients) == 1
    maps = model.extract_feat(images, stage='backbone')[-1].detach()
    expected = torch.einsum('c,bchw->bhw', model.head.fc.weight[3].detach(), maps)
    assert expected.std() > 0
    assert correlation(cam, expected) > 0.99999


@pytest.mark.parametrize('mode', ['equilibrium', 'unrolled'])
@pytest.mark.parametrize('branch', [0, 1])
def test_activation_and_gradient_belong_together(calm, branch, mode):
    model = calm(small())
    seen = observe(model.outputs[branch])
    changed = dict(mode=Unrolled(3)) if mode == 'unrolled' else {}
    with model.equilibrium.using(**changed):
        outputs = model(torch.rand(2, 3, 33, 47))
    weights = [torch.randn_like(output) for output in outputs]
    sum((w * output).sum() for w, output in zip(weights, outputs)).backward()
    assert [x.tolist() for x in seen.activations] == [outputs[branch].tolist()]
    assert [x.tolist() for x in seen.gradients] == [weights[branch].tolist()]


def test_each_is_called_once(calm):
    """Whatever is returned, and where nothing is differentiated."""
    model = calm(small(out_indices=(1, 1)))
    seen = [observe(output) for output in model.outputs]
    with torch.no_grad():
        maps = model(torch.rand(2, 3, 32, 32))
    assert [len(one.activations) for one in seen] == [1, 1]
    assert torch.equal(maps[0], seen[1].activations[0])
    assert torch.equal(maps[1], seen[1].activations[0])


def test_selection_calls_none():
    """TrajectorySupervisionHook selects from iterates, which are no outputs."""
    model = small()
    seen = observe(model.outputs[0])
    model.select([torch.zeros(1), torch.zeros(1)])
    assert seen.activations == []


def test_a_hook_that_replaces_the_output():
    """As with the layers of a stock backbone, what follows gets the replacement."""
    model = small()
    model.outputs[1].register_forward_hook(lambda module, args, output: 0 * output)
    finest, coarsest = model(torch.rand(1, 3, 32, 32))
    assert finest.any()
    assert not coarsest.any()


@pytest.mark.parametrize('gradient', ['ImplicitGradient', 'PhantomGradient'])
def test_changes_in_place(calm, gradient):
    """As heads make that begin with ``ReLU(inplace=True)``."""
    model = calm(small(gradient=dict(type=gradient)))
    images = torch.rand(2, 3, 33, 47)
    gradients = []
    for inplace in (False, True):
        model.zero_grad()
        outputs = [functional.relu(x, inplace=inplace) for x in model(images)]
        sum(output.square().sum() for output in outputs).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, actual in zip(*gradients):
        assert torch.equal(actual, expected)


def test_they_hold_nothing():
    model = small()
    assert not list(model.outputs.parameters())
    assert not [key for key in model.state_dict() if key.startswith('outputs')]


class TestGraph:
    """What ``SummaryWriter.add_graph`` traces."""

    def nodes(self, model, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            writer.add_graph(model, torch.rand(1, 3, 64, 64))
        events = EventAccumulator(str(tmp_path)).Reload()
        return [node.name for node in events.Graph().node]

    def test_unrolled(self, tmp_path):
        """The way that the error names."""
        model = classifier(BACKBONE, 16)
        with model.backbone.equilibrium.using(mode=Unrolled(2)):
            nodes = self.nodes(model, tmp_path)
        assert any('EquilibriumLayer[equilibrium]' in name for name in nodes)
        assert any('LinearClsHead[head]' in name for name in nodes)

    def test_stock_control(self, tmp_path):
        nodes = self.nodes(classifier(*CLASSIFIERS['ResNet'][:2]), tmp_path)
        assert any('LinearClsHead[head]' in name for name in nodes)

    def test_solve(self, tmp_path):
        """Its length depends on the images, which a graph cannot say."""
        with pytest.raises(RuntimeError, match=r'`with layer.using\(mode=Unrolled'):
            self.nodes(classifier(BACKBONE, 16), tmp_path)
