import json
import logging

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.engine import ImplicitGradientHook

NAMES = {
    'forward_evals',
    'forward_residual',
    'forward_converged',
    'backward_evals',
    'backward_residual',
}


def scalars(runner):
    """The JSON log, a dict for each logged iteration."""
    path = f'{runner._log_dir}/vis_data/{runner.timestamp}.json'
    with open(path) as file:
        records = [json.loads(line) for line in file]
    return {record['step']: record for record in records if 'loss' in record}


class Spy:
    """Notes in which mode the layer runs."""

    def __init__(self, runner):
        self.train, self.val = [], []
        runner.model.backbone.equilibrium.register_forward_hook(self)

    def __call__(self, layer, args, output):
        (self.train if layer.training else self.val).append(layer.shallow)


class TestImplicitGradientHook:
    def test_schedule(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        spy = Spy(runner)
        runner.train()
        assert spy.train == [True] * 4 + [False] * 2
        # Validation follows iterations 3 and 6, three batches each.
        assert spy.val == [True] * 3 + [False] * 3

    def test_equilibrium_from_the_start(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        spy = Spy(runner)
        runner.train()
        assert spy.train == [False] * 6

    def test_statistics_are_logged(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        runner.train()
        log = scalars(runner)
        for step in range(1, 5):
            assert not NAMES & set(log[step])
        for step in (5, 6):
            assert set(log[step]) >= NAMES
            assert 1 <= log[step]['forward_evals'] <= 6
            assert 1 <= log[step]['backward_evals'] <= 6
            assert log[step]['forward_residual'] > 0
            assert 0 <= log[step]['forward_converged'] <= 1

    def test_statistics_are_means_over_the_batch(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook')], length=1)
        solutions = []
        runner.model.backbone.equilibrium.register_forward_hook(
            lambda layer, args, output: solutions.append(output[1])
        )
        runner.train()
        log = scalars(runner)[1]
        solution = solutions[0]
        for name, part in (('forward', solution), ('backward', solution.adjoint)):
            n_evals, residual = part.n_evals.float().mean(), part.residual.mean()
            assert log[f'{name}_evals'] == pytest.approx(n_evals.item())
            assert log[f'{name}_residual'] == pytest.approx(residual.item())

    def test_mode_belongs_to_the_checkpoint(self, make_runner, tmp_path):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        runner.train()
        for step, shallow in ((3, True), (6, False)):
            other = make_runner(
                [dict(type='ImplicitGradientHook', pretrain_iters=4)],
                load_from=str(tmp_path / 'work_dir' / f'iter_{step}.pth'),
            )
            spy = Spy(other)
            other.val()
            assert spy.val == [shallow] * 3

    def test_other_checkpoints_are_for_the_equilibrium(self, make_runner, tmp_path):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        runner.model.backbone.equilibrium.shallow = True
        torch.save(runner.model.state_dict(), tmp_path / 'plain.pth')
        runner.load_checkpoint(str(tmp_path / 'plain.pth'))
        assert not runner.model.backbone.equilibrium.shallow

    def test_resuming_continues_the_schedule(self, make_runner, tmp_path):
        hooks = [dict(type='ImplicitGradientHook', pretrain_iters=4)]
        make_runner(hooks, length=3).train()
        runner = make_runner(hooks, resume=True)
        spy = Spy(runner)
        runner.train()
        assert spy.train == [True, False, False]

    def test_breakdown_is_said_once(self, make_runner, caplog):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        cell = runner.model.backbone.equilibrium.cell

        def poison(module, args, output):
            output[0][0] = torch.nan

        cell.register_forward_hook(poison)
        runner.logger.addHandler(caplog.handler)
        with caplog.at_level(logging.WARNING):
            runner.train()
        said = [r.getMessage() for r in caplog.records if 'NaN' in r.getMessage()]
        assert len(said) == 1
        assert '1 of 4 samples' in said[0]
        assert 'iteration 1' in said[0]
        assert 'nan' not in json.dumps(scalars(runner)[1]['forward_residual']).lower()

    def test_model_without_equilibrium(self, make_runner):
        class Plain(BaseModel):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(1, 1)

            def forward(self, images, labels, mode='tensor'):
                return dict(loss=self.fc(images.mean().view(1, 1)).sum())

        runner = make_runner([dict(type='ImplicitGradientHook')], model=Plain())
        with pytest.raises(ValueError, match='EquilibriumLayer.*Plain has none'):
            runner.train()

    @pytest.mark.parametrize('value', [-1, 2.5])
    def test_wrong_pretrain_iters(self, value):
        with pytest.raises(ValueError, match=f'pretrain_iters must .* got {value}'):
            ImplicitGradientHook(pretrain_iters=value)
