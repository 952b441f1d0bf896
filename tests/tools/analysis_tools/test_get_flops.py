"""The count of parameters and FLOPs, by its command line."""

import pytest

from mdeq_mm.benchmark import CELL

SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'
STOCK = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/get_flops.py')


@pytest.fixture
def rows(tool, capsys):
    """Runs the tool; returns its first line and the rows of its table."""

    def run(*arguments):
        tool.main([str(argument) for argument in arguments])
        lines = capsys.readouterr().out.splitlines()
        return lines[0], {
            name.strip(): [int(number.replace(',', '')) for number in numbers]
            for name, *numbers in (line.rsplit(maxsplit=2) for line in lines[2:])
        }

    return run


def test_classifier(root, rows):
    title, table = rows(root / CLASSIFIER, '--shape', 32, 32, '--evals', 7)
    assert title.endswith('one image of 32x32')
    parameters, cell = table[CELL]
    others = sum(table[name][1] for name in ('stem and injection', 'neck', 'head'))
    assert parameters == 111_696  # the official TINY
    for name, n_evals in (
        ('total, 18 evaluations (budget of the solver)', 18),
        ('total, 10 evaluations (unrolled mode)', 10),
        ('total, 7 evaluations (--evals)', 7),
    ):
        assert table[name] == [158_890, n_evals * cell + others]


def test_options_and_default_shape(root, rows):
    options = ['--cfg-options', 'model.backbone.forward_solver.max_evals=2']
    title, table = rows(root / SEGMENTOR, *options)
    assert title.endswith('one image of 192x256')
    assert 'total, 2 evaluations (budget of the solver)' in table
    assert table['head'][1] > 0


def test_stock_model(root, rows):
    _, table = rows(root / STOCK, '--shape', 64, 64)
    assert set(table) == {'backbone', 'head', 'total'}
    assert table['total'][1] == table['backbone'][1] + table['head'][1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--shape', '0', '32'], '--shape: must be at least 1, got 0'),
        (['--evals', '0'], '--evals: must be at least 1, got 0'),
    ],
)
def test_bad_arguments(tool, root, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main([str(root / CLASSIFIER), *arguments])
    assert message in capsys.readouterr().err


def test_evals_of_a_stock_model(tool, root):
    with pytest.raises(ValueError, match='--evals needs an MDEQ'):
        tool.main([str(root / STOCK), '--evals', '3'])
