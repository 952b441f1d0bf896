"""The report of an equilibrium, by its command line."""

import cv2
import pytest
import torch

from mdeq_mm import apis

SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/visualize_equilibrium.py')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    pixels = torch.randint(256, (20, 28, 3), dtype=torch.uint8).numpy()
    cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def arguments(root, tmp_path, image, calm):
    """Image, config and two checkpoints of a model of a task."""

    def make(config):
        model = apis.build_model(apis.load_config(root / config))
        for number in (1, 2):
            path = tmp_path / f'model_{number}.pth'
            torch.save(dict(state_dict=calm(model, seed=number).state_dict()), path)
        return [str(image), str(root / config), str(tmp_path / 'model_1.pth')]

    return make


@pytest.fixture
def written(tool, monkeypatch):
    """The cases of the report instead of its files."""
    cases = {}

    def write(folder, found, title):
        cases.update(found)
        return []

    monkeypatch.setattr(tool, 'write_report', write)
    return cases


@pytest.mark.parametrize('config', [SEGMENTOR, CLASSIFIER])
@pytest.mark.slow
def test_report(tool, arguments, tmp_path, capsys, config):
    out = tmp_path / 'new/report'
    tool.main([*arguments(config), '--out', str(out)])
    page = (out / 'report.html').read_text()
    assert f'{out}/report.html written' in capsys.readouterr().out
    assert 'Equilibrium of image.png' in page
    assert page.count('data:image/png;base64,') == 5
    for path in out.glob('*.png'):
        assert cv2.imread(str(path)).std() > 5


def test_solvers(tool, arguments, written):
    options = ['--solvers', 'PicardSolver', 'AndersonSolver', '--max-evals', '3']
    tool.main([*arguments(SEGMENTOR), *options, '--tol', '0'])
    assert [*written] == ['PicardSolver', 'AndersonSolver']
    for name, case in written.items():
        solver = case.examination.mode.solver
        assert type(solver).__name__ == name
        assert (solver.max_evals, solver.tol, solver.stop_mode) == (3, 0, 'rel')
        assert len(case.examination.traces) == 3
    # The directions of the adjoint solves are the same, the equilibria nearly are.
    first, second = (case.examination.adjoint.state for case in written.values())
    assert torch.nn.functional.cosine_similarity(first, second) > 0.9


def test_checkpoints(tool, arguments, written, tmp_path):
    first, second = (str(tmp_path / f'model_{number}.pth') for number in (1, 2))
    tool.main([*arguments(SEGMENTOR), '--compare-checkpoint', second])
    assert [*written] == [f'BroydenSolver, {first}', f'BroydenSolver, {second}']
    states = [case.examination.solution.state for case in written.values()]
    assert not torch.allclose(*states)


class TestBadArguments:
    @pytest.fixture(autouse=True)
    def no_model(self, tool, monkeypatch):
        monkeypatch.setattr(tool, 'Predictor', None)

    def run(self, tool, root, image, *options):
        tool.main([str(image), str(root / SEGMENTOR), 'model.pth', *options])

    def test_solver(self, tool, root, image):
        with pytest.raises(ValueError, match='NewtonSolver.*allowed are .*Anderson'):
            self.run(tool, root, image, '--solvers', 'NewtonSolver')

    def test_image(self, tool, root, image):
        image.write_bytes(b'nothing')
        with pytest.raises(ValueError, match='image.png cannot be read as an image'):
            self.run(tool, root, image)
        with pytest.raises(FileNotFoundError):
            self.run(tool, root, image.with_name('absent.png'))

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (['--max-evals', '0'], '--max-evals: must be at least 1, got 0'),
            (['--tol', '-1'], '--tol: must not be negative, got -1'),
            (['--out', 'file'], '--out must be a folder, got file'),
        ],
    )
    def test_option(self, tool, root, image, tmp_path, capsys, options, message):
        (tmp_path / 'file').touch()
        with pytest.raises(SystemExit):
            self.run(tool, root, image, *options)
        assert message in capsys.readouterr().err
