import copy

import mmpretrain.models
import mmseg.models  # noqa: F401
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.structures import DataSample
from torch import nn

from mdeq_mm.deq import PicardSolver, Unrolled
from mdeq_mm.models import DEQViT

ARCH = dict(embed_dims=16, num_heads=2, feedforward_channels=32)
TIGHT = dict(type='BroydenSolver', max_evals=150, tol=1e-12)
OUT_TYPES = ('featmap', 'avg_featmap', 'cls_token')


def small(**kwargs):
    return DEQViT(**{**dict(arch=ARCH, img_size=16, patch_size=4), **kwargs})


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


class TestArchitectures:
    @pytest.mark.parametrize('arch', DEQViT.arch_settings)
    def test_one_block_of_the_stock_transformer(self, arch):
        """The cell has the parameters of one of its blocks."""
        with torch.device('meta'):
            model = DEQViT(arch)
            stock = mmpretrain.models.VisionTransformer(f'deit-{arch}')
        assert count(model.equilibrium) == count(stock.layers[0])
        assert model.embed_dims == stock.embed_dims
        assert model.pos_embed.shape[2:] == stock.patch_resolution == (14, 14)
        assert model.equilibrium.unrolled == Unrolled(len(stock.layers))

    def test_tiny(self):
        """Forward and backward."""
        model = DEQViT(img_size=32)
        (output,) = model(torch.rand(2, 3, 32, 48))
        assert output.shape == (2, 192, 2, 3)
        output.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name

    def test_arguments_reach_the_cell(self):
        model = small(dropout=0.2, act_cfg=dict(type='ReLU'), num_layers=3)
        cell = model.equilibrium.cell
        assert cell.dropout1.p == cell.dropout2.p == 0.2
        assert isinstance(cell.feedforward[1], nn.ReLU)
        assert cell.attention.num_heads == 2
        assert model.equilibrium.unrolled == Unrolled(3)

    @pytest.mark.parametrize(
        ('kwargs', 'error', 'message'),
        [
            (dict(arch='huge'), ValueError, "arch must be one of .*'tiny'.*got 'huge'"),
            (dict(arch=dict(embed_dims=8)), TypeError, 'embed_dims, num_heads, feed'),
            (dict(arch=dict(ARCH, depth=2)), TypeError, "got .*'depth': 2"),
            (dict(patch_size=0), ValueError, 'patch_size must be an integer.*got 0'),
            (dict(img_size=0), ValueError, 'img_size must be an integer.*got 0'),
            (dict(img_size=(8, 8, 8)), ValueError, r'two integers, got \(8, 8, 8\)'),
            (dict(out_type='raw'), ValueError, "out_type must be one of.*got 'raw'"),
            (dict(frozen_stages=2), ValueError, 'frozen_stages must be one of.*got 2'),
        ],
    )
    def test_bad_arguments(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            small(**kwargs)


class TestImages:
    @pytest.mark.parametrize('out_type', OUT_TYPES)
    @pytest.mark.parametrize('size', [(16, 16), (17, 30), (3, 5), (64, 4)])
    def test_any_size(self, size, out_type):
        model = small(out_type=out_type)
        (output,) = model(torch.rand(2, 3, *size))
        if out_type == 'featmap':
            assert output.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))
        else:
            assert output.shape == (2, 16)
        output.sin().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name

    @pytest.mark.parametrize('shape', [(3, 32, 32), (1, 1, 32, 32)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r'DEQViT takes .*\(B, 3, H, W\), got \('):
            small()(torch.rand(*shape))

    def test_other_image_channels(self):
        assert small(in_channels=1)(torch.rand(1, 1, 16, 16))[0].shape[2:] == (4, 4)

    def test_positions_as_in_the_stock_transformer(self):
        model = small(img_size=(12, 20))
        own = model.pos_embed
        assert own.shape == (1, 16, 3, 5)
        stock = own.flatten(2).transpose(1, 2)
        for size in ((3, 5), (4, 7), (2, 1)):
            expected = resize_pos_embed(stock, (3, 5), size, num_extra_tokens=0)
            actual = model._positions(torch.zeros(1, 16, *size))
            torch.testing.assert_close(actual.flatten(2).transpose(1, 2), expected)

    def test_positions_matter(self):
        """Attention alone would not see where a patch is."""
        model = small().eval()
        x = torch.rand(1, 3, 16, 16)
        with torch.no_grad():
            before, after = model(x)[0], model(x.roll(8, dims=3))[0]
        assert not torch.allclose(before.roll(2, dims=3), after, atol=1e-3)

    @pytest.mark.parametrize('out_type', OUT_TYPES)
    def test_batch_equals_single_images(self, out_type):
        model = small(out_type=out_type).eval()
        x = torch.rand(3, 3, 18, 25)
        with torch.no_grad():
            (whole,) = model(x)
            for row, image in zip(whole, x):
                torch.testing.assert_close(model(image[None])[0][0], row)


@pytest.mark.versions
class TestEquilibrium:
    @pytest.mark.parametrize('dropout', [0.0, 0.3])
    @pytest.mark.parametrize('out_type', OUT_TYPES)
    def test_gradient_equals_the_unrolled_one(self, dropout, out_type):
        """Embedding, positions, class token and dropout included, in float64."""
        model = small(
            out_type=out_type,
            dropout=dropout,
            forward_solver=TIGHT,
            gradient=dict(type='ImplicitGradient', solver=TIGHT),
        ).double()
        x = torch.rand(2, 3, 13, 22, dtype=torch.float64)

        def gradients():
            torch.manual_seed(5)  # the same dropout masks
            model.zero_grad()
            model(x)[0].sin().sum().backward()
            return {name: p.grad.clone() for name, p in model.named_parameters()}

        implicit = gradients()
        with model.equilibrium.using(mode=Unrolled(120)):
            unrolled = gradients()
        for name, expected in unrolled.items():
            error = (implicit[name] - expected).norm() / expected.norm()
            assert error <= 1e-6, name

    def test_converges_from_the_start_on(self):
        """With the weights of the first iteration of a training."""
        model = DEQViT(img_size=32, patch_size=4)
        model.init_weights()
        solutions = []
        model.equilibrium.register_pass_hook(
            lambda layer, forward_pass: solutions.append(forward_pass.solution)
        )
        with torch.no_grad():
            model(torch.randn(4, 3, 32, 32))
        assert solutions[0].converged.all()
        assert solutions[0].n_evals.max() <= 16

    def test_saved_bytes(self, saved_bytes):
        """The same for every budget."""
        model, totals = small(), set()
        x = torch.rand(2, 3, 16, 16)
        for max_evals in (5, 50):
            solver = PicardSolver(max_evals, tol=0.0)
            with model.equilibrium.using(solver=solver), saved_bytes() as saved:
                model(x)
            totals.add(saved.total)
        assert len(totals) == 1

    def test_autocast(self):
        model = small(out_type='cls_token')
        with torch.autocast('cpu', dtype=torch.bfloat16):
            (output,) = model(torch.rand(2, 3, 17, 32))
        assert output.dtype == torch.float32
        output.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_half_precision(self):
        model = small().bfloat16().eval()
        with torch.no_grad():
            (output,) = model(torch.rand(1, 3, 17, 32, dtype=torch.bfloat16))
        assert output.dtype == torch.bfloat16
        assert output.isfinite().all()


class TestStages:
    def test_frozen_stages(self):
        embedding = {'patch_embed', 'patch_norm', 'pos_embed', 'cls_token'}
        for frozen_stages, frozen in (
            (-1, set()),
            (0, embedding),
            (1, embedding | {'equilibrium'}),
        ):
            model = small(frozen_stages=frozen_stages, out_type='cls_token').train()
            for name, parameter in model.named_parameters():
                assert parameter.requires_grad == (name.split('.')[0] not in frozen)
            for name, module in model.named_children():
                assert module.training == (name not in frozen)

    def test_layers(self):
        """Embedding, equilibrium, and whatever follows."""
        model = small(out_type='cls_token')
        depths = {
            name.split('.')[0]: model.get_layer_depth(f'backbone.{name}', 'backbone.')
            for name, _ in model.named_parameters()
        }
        assert depths.pop('equilibrium') == (1, 3)
        assert set(depths) == {'patch_embed', 'patch_norm', 'pos_embed', 'cls_token'}
        assert set(depths.values()) == {(0, 3)}
        assert model.get_layer_depth('head.fc.weight', 'backbone.') == (2, 3)

    def test_outputs_have_names(self):
        model = small(out_type='cls_token')
        seen = []
        for output in model.outputs:
            output.register_forward_hook(lambda part, args, z: seen.append(z))
        (token,) = model(torch.rand(2, 3, 16, 16))
        assert [tuple(z.shape) for z in seen] == [(2, 16, 4, 4), (2, 16, 1, 1)]
        assert torch.equal(token, seen[1].flatten(1))

    def test_deepcopy_and_state_dict(self):
        model, other = small().eval(), small().eval()
        twin = copy.deepcopy(model)
        x = torch.rand(1, 3, 20, 16)
        with torch.no_grad():
            expected = model(x)[0]
            assert not torch.equal(other(x)[0], expected)
            other.load_state_dict(model.state_dict())
            assert torch.equal(twin(x)[0], expected)
            assert torch.equal(other(x)[0], expected)

    def test_checkpoint_of_another_transformer_is_refused(self):
        state = small(img_size=24).state_dict()
        with pytest.raises(RuntimeError, match='pos_embed'):
            small().load_state_dict(state)

    def test_initialisation(self):
        model = DEQViT(img_size=32)
        model.init_weights()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                std = (2 / sum(module.weight.shape)) ** 0.5
                assert module.weight.std().item() == pytest.approx(std, rel=0.1)
                assert not module.bias.any()
        # Half the size of the patches, which are normalised.
        assert model.pos_embed.std().item() == pytest.approx(0.5, rel=0.1)


BACKBONE = dict(type='DEQViT', arch=ARCH, img_size=16, patch_size=4)


@pytest.mark.versions
class TestToolboxes:
    @pytest.mark.parametrize('out_type', OUT_TYPES)
    def test_classifier(self, out_type):
        neck = dict(type='GlobalAveragePooling') if out_type == 'featmap' else None
        cfg = dict(
            type='ImageClassifier',
            backbone=dict(BACKBONE, out_type=out_type),
            neck=neck,
            head=dict(type='LinearClsHead', num_classes=5, in_channels=16),
        )
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(cfg)
        images = torch.rand(2, 3, 16, 20)
        samples = [DataSample().set_gt_label(label) for label in (0, 3)]
        model.loss(images, samples)['loss'].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name
        with torch.no_grad():
            predictions = model.eval().predict(images)
        assert [len(sample.pred_score) for sample in predictions] == [5, 5]

    def test_segmentor(self):
        """Tokens as a map, at an odd size."""
        cfg = dict(
            type='EncoderDecoder',
            backbone=BACKBONE,
            decode_head=dict(
                type='FCNHead',
                in_channels=16,
                channels=8,
                num_classes=5,
                align_corners=False,
            ),
            test_cfg=dict(mode='whole'),
        )
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(cfg).eval()
        meta = [dict(ori_shape=(65, 97), img_shape=(65, 97), pad_shape=(65, 97))]
        logits = model.encode_decode(torch.rand(1, 3, 65, 97), meta)
        assert logits.shape == (1, 5, 65, 97)
        logits.sum().backward()
        for name, parameter in model.backbone.named_parameters():
            assert parameter.grad.isfinite().all(), name


@MODELS.register_module(force=True)
class TransformerClassifier(BaseModel):
    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = small(out_type='cls_token', num_layers=2, **kwargs)
        self.fc = nn.Linear(16, 3)

    def forward(self, images, labels, mode='tensor'):
        loss = nn.functional.cross_entropy(self.fc(self.backbone(images)[0]), labels)
        return dict(loss=loss) if mode == 'loss' else [loss]


class Note(Hook):
    priority = 'LOWEST'

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append(outputs)


class TestHooks:
    def test_all_of_them(self, make_runner):
        """Schedule, statistics, and three losses of their own."""
        hooks = [
            dict(type='ImplicitGradientHook', pretrain_iters=1),
            dict(type='JacobianRegularizationHook', weight=0.1),
            dict(type='TrajectorySupervisionHook', supervise=(2,)),
            dict(type='InitialGuessLossHook'),
        ]
        guess = dict(type='ProjectedGuess')
        model = dict(type='TransformerClassifier', initial_guess=guess, dropout=0.2)
        runner = make_runner(hooks, model=model, length=3)
        note = Note()
        runner.register_hook(note)
        runner.train()
        for outputs in note.losses:
            assert all(value.isfinite() for value in outputs.values())
        assert {'loss_jacobian', 'loss_trajectory', 'loss_initial_guess'} <= set(
            note.losses[-1]
        )
        scalars = runner.message_hub.log_scalars
        for name in ('forward_evals', 'forward_residual', 'adjoint_evals'):
            assert f'train/{name}' in scalars
