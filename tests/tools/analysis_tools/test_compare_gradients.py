"""The comparison of gradients, by its command line."""

import pytest
import torch

from mdeq_mm import apis

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/compare_gradients.py')


def test_table(tool, root, scenes, calm, capsys):
    model = calm(apis.build_model(apis.load_config(root / CONFIG)))
    torch.save(dict(state_dict=model.state_dict()), scenes / 'model.pth')
    tool.main(
        [
            *(str(root / CONFIG), 'model.pth', '--max-evals', '60', '--cfg-options'),
            *('test_dataloader.num_workers=0', 'test_dataloader.batch_size=1'),
            'test_dataloader.persistent_workers=False',
            'model.backbone.forward_solver.max_evals=8',
            'model.backbone.gradient.solver.max_evals=8',
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert 'forward: BroydenSolver(max_evals=8, ' in lines[-12]
    assert lines[-11] == 'as configured: ImplicitGradient'
    assert ' '.join(lines[-10].split()) == 'gradient evaluations products MiB cosine'
    rows = [line.rsplit(maxsplit=4) for line in lines[-9:]]
    table = {row[0]: [float(value) for value in row[1:]] for row in rows}
    evals, products, saved, cosine = table['as configured']
    assert 2 <= evals == table['Jacobian-free'][0] <= 9
    assert 1 <= products <= 8
    assert saved > 0
    assert 0.5 < cosine <= 1
    assert table['unrolled 8 times'][:2] == [8, 0]


def test_bad_arguments(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(['config.py', 'model.pth', '--max-evals', '0'])
    assert '--max-evals: must be at least 1, got 0' in capsys.readouterr().err
