import pytest
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import nn, rand

from mdeq_mm.utils.launch import build_model

SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'
STOCK = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'

CHANNELS, EXPANSION, CLASSES = (8, 16, 24), 2, 5
HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/get_flops.py')


@pytest.fixture
def model(root):
    """A segmentor whose counts are worked out by hand below."""
    cfg = Config.fromfile(root / SEGMENTOR)
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(
                    arch=dict(channels=CHANNELS, expansion=EXPANSION),
                    forward_solver=dict(
                        _delete_=True, type='PicardSolver', max_evals=3, tol=0
                    ),
                ),
                decode_head=dict(
                    in_channels=CHANNELS, channels=sum(CHANNELS), num_classes=CLASSES
                ),
            )
        )
    )
    return build_model(cfg)


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
    def test_by_hand(self, tool, model):
        pixels = [HEIGHT // s * (WIDTH // s) for s in (4, 8, 16)]
        parts = tool.count_parts(model, (HEIGHT, WIDTH))
        assert parts[tool.CELL].flops == cell_flops(pixels)

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
        assert set(parts) == {tool.CELL, 'stem and injection', 'head'}

    @pytest.mark.parametrize('n_evals', [1, 2, 3])
    def test_total_is_that_of_a_whole_model(self, tool, model, n_evals):
        """Unrolled: a solve returns the best iterate, which not all work is for."""
        parts = tool.count_parts(model, (HEIGHT, WIDTH))
        model.backbone.equilibrium.shallow = True
        model.backbone.equilibrium.shallow_gradient.num_layers = n_evals
        model.requires_grad_(False)
        whole = FlopAnalyzer(model, (rand(1, 3, HEIGHT, WIDTH),)).total()
        assert tool.total_flops(parts, n_evals) == whole

    def test_odd_image(self, tool, model):
        parts = tool.count_parts(model, (33, 47))
        assert parts[tool.CELL].flops == cell_flops([9 * 12, 5 * 6, 3 * 3])

    def test_parameters(self, tool, model):
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        parts = tool.count_parts(model, (HEIGHT, WIDTH))
        assert sum(part.parameters for part in parts.values()) == sum(sizes.values())
        cell = [n for name, n in sizes.items() if '.cell.' in name]
        assert parts[tool.CELL].parameters == sum(cell)

    def test_two_layers_are_refused(self, tool, model):
        with pytest.raises(ValueError, match='at most one equilibrium layer'):
            tool.count_parts(nn.ModuleList([model, type(model.backbone)()]), (64, 64))


class TestMain:
    def rows(self, capsys):
        lines = capsys.readouterr().out.splitlines()
        return lines[0], {
            name.strip(): [int(number.replace(',', '')) for number in numbers]
            for name, *numbers in (line.rsplit(maxsplit=2) for line in lines[2:])
        }

    def test_classifier(self, tool, root, capsys):
        tool.main([str(root / CLASSIFIER), '--shape', '32', '32', '--evals', '7'])
        title, rows = self.rows(capsys)
        assert title.endswith('one image of 32x32')
        cell = rows[tool.CELL][1]
        others = sum(rows[name][1] for name in ('stem and injection', 'neck', 'head'))
        parameters = rows[tool.CELL][0]
        assert parameters == 111_696  # the official TINY
        for name, n_evals in (
            ('total, 18 evaluations (budget of the solver)', 18),
            ('total, 10 evaluations (shallow mode)', 10),
            ('total, 7 evaluations (--evals)', 7),
        ):
            assert rows[name] == [158_890, n_evals * cell + others]

    def test_options_and_default_shape(self, tool, root, capsys):
        options = ['--cfg-options', 'model.backbone.forward_solver.max_evals=2']
        tool.main([str(root / SEGMENTOR), *options])
        title, rows = self.rows(capsys)
        assert title.endswith('one image of 192x256')
        assert 'total, 2 evaluations (budget of the solver)' in rows
        assert rows['head'][1] > 0

    def test_stock_model(self, tool, root, capsys):
        tool.main([str(root / STOCK), '--shape', '64', '64'])
        _, rows = self.rows(capsys)
        assert set(rows) == {'backbone', 'head', 'total'}
        assert rows['total'][1] == rows['backbone'][1] + rows['head'][1]

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['--shape', '0', '32'], '--shape must be two positive sizes'),
            (['--evals', '0'], '--evals must be at least 1'),
        ],
    )
    def test_bad_arguments(self, tool, root, capsys, arguments, message):
        with pytest.raises(SystemExit):
            tool.main([str(root / CLASSIFIER), *arguments])
        assert message in capsys.readouterr().err

    def test_evals_of_a_stock_model(self, tool, root):
        with pytest.raises(ValueError, match='--evals needs an MDEQ'):
            tool.main([str(root / STOCK), '--evals', '3'])
