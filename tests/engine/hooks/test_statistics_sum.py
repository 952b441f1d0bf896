import pytest
import torch

from mdeq_mm.deq import Solution, SolveStatus
from mdeq_mm.engine.hooks.statistics_sum import StatisticsSum


class TestStatisticsSum:
    @pytest.mark.parametrize('scale', [1.0, 50.0])
    def test_residuals_are_judged_relative_to_the_state(self, scale):
        state = torch.full((2, 4), scale)
        solution = Solution.initial(state)
        solution.residual = torch.full((2,), 0.2 * scale)
        statistics = StatisticsSum('forward')
        statistics.add([(solution, 'abs')])
        values = statistics.take()
        assert values['relative_residual'] == pytest.approx(0.1, rel=1e-5)
        solution.residual = torch.full((2,), 0.3)
        statistics.add([(solution, 'rel')])
        assert statistics.take()['relative_residual'] == pytest.approx(0.3)

    def test_infinite_residuals_are_left_out(self):
        solution = Solution.initial(torch.zeros(2, 4))
        solution.residual = torch.tensor([0.5, torch.inf])
        solution.status = torch.tensor([SolveStatus.CONVERGED, SolveStatus.BROKEN_DOWN])
        statistics = StatisticsSum('forward')
        statistics.add([(solution, 'rel')])
        solution.status = torch.zeros(2, dtype=torch.int64)
        statistics.add([(solution, 'rel')])
        values = statistics.take()
        assert values['residual'] == values['residual_max'] == 0.5
        assert values['converged'] == 0.75
        assert values['breakdown'] == 0.5
        assert statistics.n_steps == 0
