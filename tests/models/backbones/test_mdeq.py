import copy
import io

import pytest
import torch
from mmengine.utils import digit_version
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from mdeq_mm.deq import PicardSolver, Unrolled
from mdeq_mm.models import MDEQ

from ...deq.example_cell import PerceptronCell

SMALL = dict(channels=(8, 16), num_groups=4, expansion=2)
TIGHT = dict(type='BroydenSolver', max_evals=150, tol=1e-12)
FEW = dict(type='PicardSolver', max_evals=2)

# Name, parameters of the cell, and shapes of the feature maps of an image of 32x32.
ARCHITECTURES = [
    ('tiny', 111_696, [(24, 32, 32), (24, 16, 16)]),
    (
        'cifar-large',
        8_715_232,
        [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)],
    ),
    ('small', 8_716_192, [(32, 8, 8), (64, 4, 4), (128, 2, 2), (256, 1, 1)]),
    ('large', 54_422_800, [(80, 8, 8), (160, 4, 4), (320, 2, 2), (640, 1, 1)]),
    ('xl', 77_699_952, [(88, 8, 8), (176, 4, 4), (352, 2, 2), (704, 1, 1)]),
]


def small(**kwargs):
    return MDEQ(arch=SMALL, **kwargs)


class TestArchitectures:
    @pytest.mark.parametrize(('arch', 'n_parameters', 'shapes'), ARCHITECTURES)
    @pytest.mark.slow
    def test_every_architecture(self, arch, n_parameters, shapes):
        """Number of parameters, forward, backward, and some of the feature maps."""
        once = dict(type='PicardSolver', max_evals=1)
        gradient = dict(type='PhantomGradient', steps=1)
        model = MDEQ(arch, forward_solver=once, gradient=gradient)
        cell = model.equilibrium.cell
        assert sum(p.numel() for p in cell.parameters()) == n_parameters
        assert model.channels == tuple(shape[0] for shape in shapes)

        image = torch.rand(2, 3, 32, 32)
        outputs = model(image)
        assert [tuple(output.shape) for output in outputs] == [
            (2, *shape) for shape in shapes
        ]
        assert all(output.stride(-1) == 1 for output in outputs)
        sum(output.square().sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name

        with torch.no_grad():
            outputs = model.eval()(image)
            model.out_indices = (len(shapes) - 1, 0)
            coarsest, finest = model(image)
        assert torch.equal(coarsest, outputs[-1])
        assert torch.equal(finest, outputs[0])

    def test_every_name_is_in_the_table(self):
        assert [row[0] for row in ARCHITECTURES] == list(MDEQ.arch_settings)

    def test_default(self):
        assert MDEQ().channels == MDEQ(arch='small').channels

    def test_arch_is_shorthand_for_a_cell(self):
        """The same model either way."""
        torch.manual_seed(0)
        model = MDEQ(dict(SMALL, downsample_times=1), dropout=0.2)
        torch.manual_seed(0)
        cell = dict(type='MultiscaleCell', **SMALL, dropout=0.2)
        other = MDEQ(cell=cell, downsample_times=1)
        assert str(model) == str(other)
        for (name, a), (same, b) in zip(
            model.state_dict().items(), other.state_dict().items()
        ):
            assert name == same
            assert torch.equal(a, b), name

    def test_options_reach_the_cell(self):
        model = small(
            dropout=0.2,
            with_cp=True,
            conv_cfg=dict(type='Conv2dAdaptivePadding'),
            act_cfg=dict(type='GELU'),
        )
        cell = model.equilibrium.cell
        assert cell.with_cp
        assert cell.branches[0][0].dropout.p == 0.2
        for part in (model.stem, model.injection, cell):
            kinds = {type(module).__name__ for module in part.modules()}
            assert 'GELU' in kinds
            assert 'ReLU' not in kinds
            assert 'Conv2dAdaptivePadding' in kinds

    def test_downsample_times_of_the_argument(self):
        assert MDEQ('tiny').coarsest_stride == 2
        assert MDEQ('tiny', downsample_times=1).coarsest_stride == 4
        assert MDEQ(SMALL, downsample_times=0).coarsest_stride == 2
        assert MDEQ(SMALL).coarsest_stride == 8

    @pytest.mark.parametrize(
        ('downsample_times', 'stride', 'n_convs'),
        [(0, 1, 2), (1, 2, 2), (2, 4, 2), (3, 8, 3), (4, 16, 4)],
    )
    def test_stem(self, downsample_times, stride, n_convs):
        model = MDEQ(arch=dict(SMALL, downsample_times=downsample_times))
        assert len(model.stem) == n_convs
        assert model.stem(torch.rand(2, 3, 64, 64)).shape[-1] == 64 // stride
        # The official model injects the stem's own output only here.
        assert len(model.injection) == (0 if downsample_times == 0 else 1)

    def test_injection_of_many_branches_without_stride(self):
        arch = dict(SMALL, channels=(8, 8, 8), downsample_times=0)
        assert len(MDEQ(arch=arch).injection) == 1

    def test_other_image_channels(self):
        assert small(in_channels=1)(torch.rand(2, 1, 16, 16))[0].shape == (2, 8, 4, 4)

    def test_select(self):
        model = small(out_indices=(1, 0))
        features = [object(), object()]
        assert model.select(features) == (features[1], features[0])

    def test_initialisation(self):
        """Paper: N(0, 0.01^2), but PyTorch's default where weights are normalised."""
        model = MDEQ(arch='small')
        model.init_weights()
        cell = model.equilibrium.cell
        plain = [
            model.stem[1].conv,
            model.injection[0].conv,
            cell.fusion[0][3].conv,
            cell.fusion[3][0][1].conv,
        ]
        for conv in plain:
            std = conv.weight.std().item()
            assert std == pytest.approx(0.01, rel=0.1)
        for conv in (cell.branches[1][0].conv1, cell.post_fusion[2][1]):
            g, v = conv.parametrizations.weight.original0, conv.weight
            bound = v[0].numel() ** -0.5
            assert v.abs().max() <= bound
            assert v.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            torch.testing.assert_close(g.flatten(), v.flatten(1).norm(dim=1))
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.affine:
                assert (module.weight == 1).all()
                assert (module.bias == 0).all()


class TestSizes:
    @pytest.mark.parametrize(
        'size', [(33, 47), (32, 40), (31, 33), (17, 200), (64, 65), (130, 35)]
    )
    def test_any_size(self, size):
        arch = dict(channels=(8, 8, 8, 8), expansion=1)
        model = MDEQ(arch, forward_solver=FEW)
        outputs = model(torch.rand(2, 3, *size))
        height, width = size
        height, width = -(-height // 4), -(-width // 4)
        for output in outputs:
            assert output.shape[2:] == (height, width)
            height, width = (height + 1) // 2, (width + 1) // 2
        sum(output.sum() for output in outputs).backward()

    def test_small_cifar_sizes(self):
        model = MDEQ(arch='tiny', forward_solver=FEW)
        for size in (31, 33, 2):
            assert model(torch.rand(1, 3, size, size))[0].shape[-1] == size

    @pytest.mark.slow
    def test_whole_cityscapes_image(self):
        model = MDEQ(
            arch='small', forward_solver=dict(type='BroydenSolver', max_evals=3)
        )
        with torch.no_grad():
            outputs = model.eval()(torch.rand(1, 3, 1024, 2048))
        assert outputs[0].shape == (1, 32, 256, 512)
        assert outputs[3].shape == (1, 256, 32, 64)
        assert all(output.isfinite().all() for output in outputs)

    @pytest.mark.parametrize('size', [(16, 64), (64, 16), (1, 1)])
    def test_too_small(self, size):
        message = rf'{size[0]}x{size[1]} is too small.*4 branches.*stride 32.*least 17'
        with pytest.raises(ValueError, match=message):
            MDEQ(arch='small')(torch.rand(1, 3, *size))

    @pytest.mark.parametrize('shape', [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r'\(B, 3, H, W\), got \(' + str(shape[0])):
            MDEQ(arch='small')(torch.rand(*shape))


@pytest.mark.versions
class TestModes:
    def test_dropout_is_fixed_within_a_forward_pass(self, calm):
        """Otherwise there would be no equilibrium to converge to."""
        model = calm(
            small(
                dropout=0.5,
                forward_solver=dict(type='BroydenSolver', max_evals=60, tol=1e-5),
            )
        )
        solutions = []
        model.equilibrium.register_pass_hook(
            lambda layer, forward_pass: solutions.append(forward_pass.solution)
        )
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            first, second = model(x), model(x)
            assert not torch.equal(first[0], second[0])
            assert all(solution.converged.all() for solution in solutions)
            model.eval()
            assert torch.equal(model(x)[0], model(x)[0])

    @pytest.mark.parametrize('dropout', [0.0, 0.3])
    def test_gradient_equals_the_unrolled_one(self, calm, dropout):
        """Weight norm, dropout, injection and stem included, in float64."""
        model = calm(
            small(
                dropout=dropout,
                forward_solver=TIGHT,
                gradient=dict(type='ImplicitGradient', solver=TIGHT),
            )
        ).double()
        x = torch.rand(2, 3, 21, 34, dtype=torch.float64)
        layer = model.equilibrium

        def gradients():
            torch.manual_seed(5)  # the same dropout masks
            model.zero_grad()
            outputs = model(x)
            sum(output.sin().sum() for output in outputs).backward()
            return {name: p.grad.clone() for name, p in model.named_parameters()}

        implicit = gradients()
        with layer.using(mode=Unrolled(120)):
            unrolled = gradients()
        for name, expected in unrolled.items():
            error = (implicit[name] - expected).norm() / expected.norm()
            assert error <= 1e-6, name

    def test_saved_bytes(self, saved_bytes):
        """The same for every budget, and no more than two applications of the cell."""
        model = small()
        with torch.no_grad():
            injection = model.injection(model.stem(torch.rand(2, 3, 64, 64)))
        injections = (injection, torch.zeros(2, 16, 8, 8))
        layer = model.equilibrium
        states = [torch.zeros_like(x).requires_grad_() for x in injections]
        with layer.cell.freeze(injections), saved_bytes() as one_application:
            layer.cell(states, injections)

        totals = set()
        for max_evals in (5, 50):
            solver = PicardSolver(max_evals, tol=0.0)
            with layer.using(solver=solver), saved_bytes() as saved:
                forward_pass = layer(injections).forward_pass
            assert (forward_pass.solution.n_evals == max_evals).all()
            totals.add(saved.total)
        assert len(totals) == 1
        assert 0 < totals.pop() <= 2 * one_application.total

    @pytest.mark.parametrize('dropout', [0.0, 0.3])
    def test_checkpointing_leaves_the_gradient(self, calm, dropout):
        """Backward computes the parts again with the weights and masks of the solve."""
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        gradients = []
        for with_cp in (False, True):
            torch.manual_seed(0)
            model = calm(small(dropout=dropout, with_cp=with_cp)).double()
            torch.manual_seed(5)
            outputs = model(x)
            sum(output.sin().sum() for output in outputs).backward()
            gradients.append([p.grad for p in model.parameters()])
        for expected, actual in zip(*gradients):
            assert (actual - expected).norm() <= 1e-10 * expected.norm()

    def test_checkpointing_with_autocast(self, calm):
        model = calm(small(dropout=0.3, with_cp=True))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outputs = model(torch.rand(2, 3, 32, 32))
        sum(output.sum() for output in outputs).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_checkpointing_saves_less_for_every_budget(self, saved_bytes):
        injections = (torch.rand(2, 8, 32, 32), torch.zeros(2, 16, 16, 16))
        totals = {}
        for with_cp in (False, True):
            layer = small(with_cp=with_cp).equilibrium
            totals[with_cp] = set()
            for max_evals in (5, 50):
                solver = PicardSolver(max_evals, tol=0.0)
                with layer.using(solver=solver), saved_bytes() as saved:
                    layer(injections)
                totals[with_cp].add(saved.total)
            assert len(totals[with_cp]) == 1
        assert 0 < totals[True].pop() <= 0.5 * totals[False].pop()

    def test_frozen_stages(self):
        x = torch.rand(2, 3, 32, 32)
        for frozen_stages, trained in ((-1, 3), (0, 1), (1, 0)):
            model = small(frozen_stages=frozen_stages).train()
            stages = [model.stem, model.injection, model.equilibrium]
            frozen = stages[: 3 - trained] if frozen_stages < 1 else stages
            for stage in frozen:
                assert not any(p.requires_grad for p in stage.parameters())
                assert not any(module.training for module in stage.modules())
            for stage in stages[len(frozen) :]:
                assert all(p.requires_grad for p in stage.parameters())
                assert stage.training
            means = [b.clone() for n, b in model.named_buffers() if 'mean' in n]
            model(x)
            after = [b for n, b in model.named_buffers() if 'mean' in n]
            unchanged = all(map(torch.equal, means, after))
            assert unchanged == (frozen_stages >= 0)

    def test_norm_eval(self):
        model = small(norm_eval=True).train()
        assert model.training
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert not module.training

    def test_group_norm_in_the_stem(self):
        model = small(norm_cfg=dict(type='GN', num_groups=2))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        model(torch.rand(1, 3, 32, 32))[0].sum().backward()

    def test_deepcopy_and_state_dict(self):
        model = small().eval()
        twin = copy.deepcopy(model)
        other = small().eval()
        other.load_state_dict(model.state_dict())
        x = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            expected = model(x)[0]
            assert torch.equal(twin(x)[0], expected)
            assert torch.equal(other(x)[0], expected)

    def test_loads_the_old_keys_of_weight_norm(self):
        model, other = small(), small()
        renamed = {
            name.replace('parametrizations.weight.original0', 'weight_g').replace(
                'parametrizations.weight.original1', 'weight_v'
            ): value
            for name, value in model.state_dict().items()
        }
        assert any(name.endswith('weight_g') for name in renamed)
        other.load_state_dict(renamed)
        for name, value in other.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])

    def test_autocast(self, calm):
        model = calm(small())
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outputs = model(torch.rand(2, 3, 32, 32))
        assert all(output.dtype == torch.float32 for output in outputs)
        sum(output.sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name

    def test_autocast_leaves_double_precision_alone(self, calm):
        model = calm(small()).double()
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        expected = model(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outputs = model(x)
        for a, b in zip(outputs, expected):
            assert torch.equal(a, b)

    def test_autocast_casts_weights_once(self, calm):
        model = calm(small(forward_solver=PicardSolver(5, tol=0.0)))
        seen = []
        conv = model.equilibrium.cell.branches[0][0].conv1
        conv.register_forward_pre_hook(lambda module, args: seen.append(module.weight))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            model(torch.rand(2, 3, 32, 32))
        assert len(seen) == 6  # with the one that autograd records
        assert seen[0].dtype == torch.bfloat16
        assert all(weight is seen[0] for weight in seen)


class TestInitialization:
    """What ``init_cfg`` says reaches the convolutions whose weights are normalised."""

    CFGS = [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Xavier', layer='Conv2d', distribution='uniform'),
        dict(type='Normal', layer='Conv2d', std=0.5),
        dict(type='Constant', layer='Conv2d', val=0.25),
    ]

    @pytest.mark.parametrize('cfg', CFGS, ids=lambda cfg: cfg['type'])
    def test_normalised_weights(self, cfg):
        model = small(init_cfg=cfg)
        identities = [id(parameter) for parameter in model.parameters()]
        before = model.equilibrium.cell.branches[0][0].conv1.weight.detach().clone()
        model.init_weights()
        weight = model.equilibrium.cell.branches[0][0].conv1.weight
        assert not torch.equal(weight, before)
        if cfg['type'] == 'Constant':
            torch.testing.assert_close(weight, torch.full_like(weight, 0.25))
        if cfg['type'] == 'Normal':
            assert 0.4 < weight.std() < 0.6
        assert [id(parameter) for parameter in model.parameters()] == identities

    def test_zeros(self):
        """They have no direction, and can be trained all the same."""
        cfg = dict(type='Constant', layer='Conv2d', val=0.0)
        model = small(init_cfg=cfg)
        model.init_weights()
        conv = model.equilibrium.cell.branches[0][0].conv1
        torch.testing.assert_close(conv.weight, torch.zeros_like(conv.weight))
        conv.weight.sum().backward()
        grad = conv.parametrizations.weight.original0.grad
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0

    def test_of_the_paper(self):
        """The authors' code overwrites what it draws for the normalised weights."""
        model = small()
        before = copy.deepcopy(model.state_dict())
        model.init_weights()
        changed = [
            key
            for key, value in model.state_dict().items()
            if not torch.equal(value, before[key])
        ]
        assert changed
        assert not [key for key in changed if 'parametrizations' in key]

    def test_a_pretrained_backbone(self, tmp_path):
        model = small()
        torch.save(model.state_dict(), tmp_path / 'backbone.pth')
        cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
        other = small(init_cfg=cfg)
        other.init_weights()
        for key, value in other.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key


class TestHalfPrecision:
    @pytest.mark.parametrize('solver', ['PicardSolver', 'AndersonSolver', TIGHT])
    @pytest.mark.parametrize('deploy', [False, True])
    def test_servers(self, solver, deploy):
        """A model and its images in bfloat16, without autocast."""
        if isinstance(solver, str):
            solver = dict(type=solver, max_evals=8)
        model = small(forward_solver=solver, deploy=deploy).eval().bfloat16()
        with torch.no_grad():
            features = model(torch.rand(2, 3, 33, 47).bfloat16())
        assert all(feature.dtype == torch.bfloat16 for feature in features)
        assert all(feature.isfinite().all() for feature in features)

    def test_training(self):
        """Every parameter gets a gradient near the one of float32."""
        torch.manual_seed(0)
        model = small(num_layers=2)
        model.equilibrium.mode = model.equilibrium.unrolled
        images = torch.rand(2, 3, 32, 32)
        gradients = {}
        for dtype in (torch.float32, torch.bfloat16):
            copied = copy.deepcopy(model).to(dtype)
            sum(f.float().pow(2).sum() for f in copied(images.to(dtype))).backward()
            gradients[dtype] = torch.cat(
                [p.grad.float().flatten() for p in copied.parameters()]
            )
        cosine = torch.cosine_similarity(*gradients.values(), dim=0)
        assert cosine > 0.95


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5'),
    reason='torch before 2.5 compiles less of Python',
)
@pytest.mark.parametrize('training', [False, True])
def test_compiled_as_a_whole(training):
    """As ``compile`` in a config of mmengine does; the solve itself stays Python."""
    solver = dict(type='PicardSolver', max_evals=3, tol=0.0)
    model = MDEQ(
        arch=dict(channels=(8, 16), num_groups=4),
        forward_solver=solver,
        gradient=dict(type='ImplicitGradient', solver=solver),
    ).train(training)
    compiled, x = torch.compile(model, backend='eager'), torch.rand(1, 3, 32, 32)
    results = []
    for function in (model, compiled):
        features = function(x)
        loss = sum(feature.sum() for feature in features)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((*features, *gradients))
    for plain, other in zip(*results):
        assert torch.equal(plain, other)


class TestBrokenWeights:
    def test_nan_is_said_in_evaluation(self):
        model = small().eval()
        with torch.no_grad():
            model.equilibrium.cell.branches[0][0].norm1.weight.fill_(torch.nan)
            with pytest.warns(RuntimeWarning, match='returned NaN or Inf'):
                model(torch.rand(1, 3, 32, 32))


class TestCell:
    """What a backbone does for any cell."""

    CELL = dict(type='PerceptronCell', channels=(8, 16))

    def test_forward_and_backward(self, calm):
        model = MDEQ(cell=self.CELL, gradient=dict(type='PhantomGradient'))
        assert model.channels == (8, 16)
        outputs = model(torch.rand(2, 3, 33, 47))
        shapes = [tuple(output.shape) for output in outputs]
        assert shapes == [(2, 8, 9, 12), (2, 16, 5, 6)]
        sum(output.square().sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name

    def test_is_an_equilibrium(self):
        model = MDEQ(cell=self.CELL, forward_solver=TIGHT).double().eval()
        with torch.no_grad():
            image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
            outputs = model(image)
            finest = model.injection(model.stem(image))
            injections = (finest, torch.zeros_like(outputs[1]))
            for a, b in zip(model.equilibrium.cell(outputs, injections), outputs):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-8)

    def test_an_object(self):
        cell = PerceptronCell((8,))
        model = MDEQ(cell=cell, downsample_times=0)
        assert model.equilibrium.cell is cell
        assert model(torch.rand(1, 3, 5, 7))[0].shape == (1, 8, 5, 7)

    def test_dropout_belongs_to_the_cell(self):
        model = MDEQ(cell=dict(self.CELL, dropout=0.5))
        with torch.no_grad():
            image = torch.rand(2, 3, 32, 32)
            assert not torch.equal(model(image)[0], model(image)[0])

    def test_frozen_stages(self):
        model = MDEQ(cell=self.CELL, frozen_stages=1).train()
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.equilibrium.cell.training

    def test_the_guess_gets_the_channels(self):
        model = MDEQ(cell=self.CELL, initial_guess=dict(type='ProjectedGuess'))
        widths = [conv.out_channels for conv in model.equilibrium.initial_guess.convs]
        assert widths == [8, 16]

    def test_a_guess_of_another_kind(self):
        """Channels are given to what takes them, whatever its name."""
        model = small(initial_guess=dict(type='PreviousGuess'))
        assert type(model.equilibrium.initial_guess).__name__ == 'PreviousGuess'

    @pytest.mark.versions
    def test_switch_to_deploy(self):
        """It folds whatever is parametrized, several tensors of a module as well."""
        cell = PerceptronCell((8, 16))
        last = cell.layers[0][3]
        spectral_norm(last, 'bias')
        model = MDEQ(cell=cell).eval()
        twin = copy.deepcopy(model)
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            expected = model(image)
            model.switch_to_deploy()
            for a, b, c in zip(model(image), expected, twin(image)):
                torch.testing.assert_close(a, b)
                assert torch.equal(b, c)
        assert not any(parametrize.is_parametrized(m) for m in model.modules())
        assert type(last) is nn.Conv2d


class NoCell(nn.Module):
    pass


class TestWrongArguments:
    @pytest.mark.parametrize(
        ('kwargs', 'error', 'message'),
        [
            (dict(arch='huge'), ValueError, "arch must be one of .*'tiny'.*got 'huge'"),
            (dict(arch=dict(expansion=5)), TypeError, "arch must .* key 'channels'"),
            (dict(arch=(8, 16)), TypeError, r'arch must .* got \(8, 16\)'),
            (
                dict(arch=dict(channels=(8,), depth=3)),
                TypeError,
                'arch: MultiscaleCell has no argument depth, allowed are channels',
            ),
            (dict(arch=dict(channels=(8,), type='PerceptronCell')), TypeError, 'type'),
            (
                dict(arch=dict(channels=(8,), dropout=0.1), dropout=0.2),
                TypeError,
                'dropout',
            ),
            (
                dict(arch=dict(channels=(8, 12))),
                ValueError,
                'channels must be divisible',
            ),
            (
                dict(arch=dict(channels=(8, 8), num_blocks=(1,))),
                ValueError,
                'num_blocks must have one entry',
            ),
            (
                dict(arch=dict(channels=(8,), downsample_times=-1)),
                ValueError,
                'downsample_times must be an integer of at least 0, got -1',
            ),
            (dict(downsample_times=1.0), ValueError, r'downsample_times .* got 1\.0'),
            (dict(in_channels=0), ValueError, 'in_channels must .* got 0'),
            (dict(out_indices=(0, 4)), ValueError, r'out_indices must .* 0 to 3, got'),
            (dict(out_indices=()), ValueError, r'out_indices must .* 0 to 3, got'),
            (
                dict(frozen_stages=2),
                ValueError,
                'frozen_stages must be one of .* got 2',
            ),
            (dict(num_layers=0), ValueError, 'num_layers must .* got 0'),
            (dict(dropout=-0.5), ValueError, r'dropout must .* got -0\.5'),
            (dict(forward_solver=dict(type='Newton')), ValueError, 'forward_solver'),
            (
                dict(forward_solver=dict(type='BroydenSolver', tol=-1)),
                ValueError,
                'tol must .* got -1',
            ),
            (dict(gradient=dict(type='Exact')), ValueError, "gradient: .*'Exact'"),
        ],
    )
    def test_one_clear_error(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            MDEQ(**kwargs)

    @pytest.mark.parametrize(
        ('kwargs', 'error', 'message'),
        [
            (dict(arch='tiny'), ValueError, "arch.* exclude cell.* arch='tiny'"),
            (dict(dropout=0.1), ValueError, "exclude cell.* {'dropout': 0.1}"),
            (dict(dropout=0.0), ValueError, "exclude cell.* {'dropout': 0.0}"),
            (dict(with_cp=True), ValueError, "exclude cell.* {'with_cp': True}"),
            (
                dict(cell=dict(type='PerceptronCell', channels=(8,), depth=3)),
                TypeError,
                'cell: PerceptronCell has no argument depth, allowed are channels',
            ),
            (dict(cell=dict(type='Perceptron')), ValueError, "cell: .*'Perceptron'"),
            (
                dict(cell=dict(type='MDEQ')),
                ValueError,
                "cell: .*'MDEQ'.*MultiscaleCell",
            ),
            (dict(cell=dict(channels=(8,))), TypeError, "cell must .* key 'type'"),
            (dict(cell=NoCell()), TypeError, 'cell must be a Cell'),
            (
                dict(cell=PerceptronCell(())),
                TypeError,
                'cell must have an attribute channels.* PerceptronCell has none',
            ),
        ],
    )
    def test_of_a_cell(self, kwargs, error, message):
        cell = dict(type='PerceptronCell', channels=(8, 16))
        with pytest.raises(error, match=message):
            MDEQ(**{'cell': cell, **kwargs})


@pytest.mark.versions
class TestDeploy:
    def test_pickle(self):
        """The whole model can be saved, not the state dict alone."""
        model = small(deploy=True, forward_solver=FEW).eval()
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        x = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded(x)[0], model(x)[0])

    def test_trace(self):
        model = small(deploy=True).eval()
        x = torch.zeros(1, 3, 32, 32)
        with torch.no_grad():
            with pytest.raises(RuntimeError, match='torch.jit.trace cannot record'):
                torch.jit.trace(model, x)
            with model.equilibrium.using(mode=Unrolled(2)):
                traced = torch.jit.trace(model, x)
                y = torch.rand_like(x)
                torch.testing.assert_close(traced(y)[0], model(y)[0])

    def test_outputs_stay_the_same(self, calm):
        model = calm(small()).eval()
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            expected = model(image)
            model.switch_to_deploy()
            actual = model(image)
        for a, b in zip(actual, expected):
            torch.testing.assert_close(a, b)
        assert not any('parametrizations' in name for name in model.state_dict())

    def test_copies_are_not_touched(self, calm):
        """An averaged model, for one, is a deep copy."""
        model = calm(small()).eval()
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            expected = model(image)
            copy.deepcopy(model).switch_to_deploy()
            actual = model(image)
        for a, b in zip(actual, expected):
            assert torch.equal(a, b)

    def test_checkpoint_of_a_deployed_model(self, calm):
        model = calm(small()).eval()
        model.switch_to_deploy()
        model.switch_to_deploy()
        other = small(deploy=True).eval()
        other.load_state_dict(model.state_dict(), strict=True)
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            for a, b in zip(other(image), model(image)):
                assert torch.equal(a, b)
