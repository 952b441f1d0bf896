import pytest
from mmengine.analysis import FlopAnalyzer
from torch import nn, rand
from torch.nn.utils import parametrize

from mdeq_mm.apis import build_model, load_config, single_layer
from mdeq_mm.benchmark import CELL, count_parts, total_flops
from mdeq_mm.deq import Unrolled

SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'
STOCK = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'

CHANNELS, EXPANSION, CLASSES = (8, 16, 24), 2, 5
HEIGHT, WIDTH = 32, 48


@pytest.fixture
def model(root):
    """A segmentor whose counts are worked out by hand below."""
    backbone = dict(arch=dict(channels=CHANNELS, expansion=EXPANSION))
    head = dict(in_channels=CHANNELS, channels=sum(CHANNELS), num_classes=CLASSES)
    options = dict(model=dict(backbone=backbone, decode_head=head))
    return build_model(load_config(root / SEGMENTOR, options))


def conv(in_channels, out_channels, size, pixels):
    return in_channels * out_channels * size**2 * pixels


def group_norm(channels, pixels):
    return 5 * channels * pixels


def cell_flops(pixels):
    """The cell as the paper describes it."""
    total = 0
    for width, n in zip(CHANNELS, pixels):
        inner = EXPANSION * width
        total += conv(width, inner, 3, n) + group_norm(inner, n)
        total += conv(inner, width, 3, n) + 2 * group_norm(width, n)
        total += conv(width, width, 1, n) + group_norm(width, n)  # after the fusion
    for source, c in enumerate(CHANNELS):
        for target, d in enumerate(CHANNELS):
            if source > target:
                n = pixels[source]
                total += conv(c, d, 1, n) + group_norm(d, n)
                total += d * pixels[target]  # nearest up-sampling
            for level in range(source + 1, target + 1):
                out = d if level == target else c
                total += conv(c, out, 3, pixels[level])
                total += group_norm(out, pixels[level])
    return total


class TestCountParts:
    def test_by_hand(self, model):
        pixels = [HEIGHT // s * (WIDTH // s) for s in (4, 8, 16)]
        parts = count_parts(model, (HEIGHT, WIDTH))
        assert parts[CELL].flops == cell_flops(pixels)

        width, finest = CHANNELS[0], pixels[0]
        stem = conv(3, width, 3, 4 * finest) + 2 * width * 4 * finest
        stem += conv(width, width, 3, finest) + 2 * width * finest
        injection = conv(width, width, 1, finest) + 2 * width * finest
        assert parts['stem and injection'].flops == stem + injection

        joint = sum(CHANNELS)
        head = conv(joint, joint, 1, finest) + 2 * joint * finest
        head += conv(joint, CLASSES, 1, finest)
        head += 4 * joint * finest  # all branches are resized, bilinearly
        assert parts['head'].flops == head
        assert set(parts) == {CELL, 'stem and injection', 'head'}

    @pytest.mark.parametrize('n_evals', [1, 2, 3])
    def test_total_is_that_of_a_whole_model(self, model, n_evals):
        """Unrolled: a solve returns the best iterate, which not all work is for."""
        parts = count_parts(model, (HEIGHT, WIDTH))
        model.requires_grad_(False)
        model.backbone.switch_to_deploy()
        with single_layer(model).using(mode=Unrolled(n_evals)):
            whole = FlopAnalyzer(model, (rand(1, 3, HEIGHT, WIDTH),)).total()
        assert total_flops(parts, n_evals) == whole

    def test_odd_image(self, model):
        parts = count_parts(model, (33, 47))
        assert parts[CELL].flops == cell_flops([9 * 12, 5 * 6, 3 * 3])

    def test_parameters(self, model):
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        parts = count_parts(model, (HEIGHT, WIDTH))
        assert sum(part.parameters for part in parts.values()) == sum(sizes.values())
        cell = [n for name, n in sizes.items() if '.cell.' in name]
        assert parts[CELL].parameters == sum(cell)

    def test_model_stays_as_it_is(self, model):
        before = list(model.state_dict())
        layer = single_layer(model)
        count_parts(model, (HEIGHT, WIDTH))
        assert list(model.state_dict()) == before
        assert layer.mode is layer.configured
        conv = layer.cell.branches[0][0].conv1
        assert parametrize.is_parametrized(conv, 'weight')

    def test_stock_model(self, root):
        parts = count_parts(build_model(load_config(root / STOCK)), (64, 64))
        assert set(parts) == {'backbone', 'head'}
        assert total_flops(parts) == parts['backbone'].flops + parts['head'].flops

    def test_two_layers_are_refused(self, model):
        with pytest.raises(ValueError, match='at most one equilibrium layer'):
            count_parts(nn.ModuleList([model, type(model.backbone)()]), (64, 64))
