import json

import cv2
import pytest
import torch

from mdeq_mm import apis

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
NAME = 'analysis_tools/accuracy_vs_evals.py'
OPTIONS = [
    '--cfg-options',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
]


@pytest.fixture
def arguments(root, scenes, calm):
    """Config and checkpoint; the images are in the working directory."""
    model = calm(apis.build_model(apis.load_config(root / CONFIG)))
    torch.save(dict(state_dict=model.state_dict()), scenes / 'model.pth')
    return [root / CONFIG, scenes / 'model.pth']


def logged(work_dir):
    """The metrics that a run has logged last."""
    (path,) = work_dir.glob('*/*.json')
    return json.loads(path.read_text().splitlines()[-1])


def test_figures_are_those_of_a_test(run_tool, arguments, scenes):
    """With the budget of the config, and with one among its options."""
    out = scenes / 'new/budgets.png'
    evals = ['--evals', 2, 5, '--out', out]
    output = run_tool(NAME, *arguments, *evals, *OPTIONS, cwd=scenes)
    assert f'{out} and {out.with_suffix(".json")} written' in output
    assert cv2.imread(str(out)).shape[2] == 3
    tests = json.loads(out.with_suffix('.json').read_text())
    assert [test['max_evals'] for test in tests] == [2, 5, 20]
    header, *rows = output[output.index('budget ') :].splitlines()[:4]
    names = ['budget', 'evaluations', 'residual', 'ms/image', 'aAcc', 'mIoU', 'mAcc']
    assert header.split() == names
    for row, test in zip(rows, tests):
        budget, n_evals, residual, _, *metrics = row.split()
        assert int(budget) == test['max_evals']
        assert float(n_evals) == pytest.approx(test['n_evals'], abs=0.005)
        assert float(residual) == pytest.approx(test['residual'], rel=0.01)
        assert [float(m) for m in metrics] == pytest.approx(
            list(test['metrics'].values()), rel=1e-3
        )
    for test, options in (
        (tests[2], []),
        (tests[0], ['model.backbone.forward_solver.max_evals=2']),
    ):
        work_dir = scenes / f'test-{test["max_evals"]}'
        where = ['--work-dir', work_dir]
        run_tool('test.py', *arguments, *where, *OPTIONS, *options, cwd=scenes)
        found = logged(work_dir)
        for name, value in test['metrics'].items():
            assert found[name] == value


def test_other_weights(load_tool, arguments, scenes, root):
    state = torch.load(scenes / 'model.pth')['state_dict']
    del state['decode_head.conv_seg.bias']
    torch.save(dict(state_dict=state), scenes / 'model.pth')
    command = [*map(str, arguments), '--evals', '1']
    tool = load_tool(NAME)
    with pytest.raises(ValueError, match=r'(?s)1 missing.*--allow-partial evaluates'):
        tool.main([*command, *OPTIONS])
    option = 'model.backbone.forward_solver.max_evals=1'
    tool.main([*command, '--allow-partial', *OPTIONS, option])
    assert (scenes / 'accuracy_vs_evals.png').exists()


def test_unknown_metric(load_tool, arguments, scenes):
    """The first test is enough to see it, and nothing is written."""
    command = [*map(str, arguments), '--evals', '1', '--metrics', 'mAP']
    with pytest.raises(ValueError, match="metrics must be .*'mIoU'.* got 'mAP'"):
        load_tool(NAME).main([*command, *OPTIONS])
    assert not list(scenes.glob('accuracy_vs_evals.*'))
    logs = [path.read_text() for path in scenes.rglob('*.log')]
    assert sum('mIoU: ' in line for log in logs for line in log.splitlines()) == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--evals', '0'], '--evals: must be at least 1, got 0'),
        (['--tol', '-1'], '--tol: must not be negative, got -1'),
        (['--out', 'figures.json'], '--out must end as a picture does'),
    ],
)
def test_bad_arguments(load_tool, capsys, options, message):
    with pytest.raises(SystemExit):
        load_tool(NAME).main(['config.py', 'model.pth', *options])
    assert message in capsys.readouterr().err
