import copy
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from mdeq_mm.deq import PicardSolver, Solution, SolveStatus


@pytest.fixture
def solution():
    return PicardSolver(max_evals=3).solve(torch.cos, torch.zeros(2, 3))


class TestSolution:
    def test_cannot_be_set(self, solution):
        for item in fields(Solution):
            with pytest.raises(FrozenInstanceError):
                setattr(solution, item.name, None)

    def test_is_compared_and_hashed_as_an_object(self, solution):
        assert solution == solution
        assert solution != copy.copy(solution)
        assert len({solution, copy.copy(solution)}) == 2

    def test_is_replaced(self, solution):
        other = replace(solution, inverse_jacobian=None)
        assert other.state is solution.state

    def test_messages(self):
        codes = torch.tensor([0, 1, 2])
        solution = Solution(codes, codes, codes, codes, codes)
        assert solution.converged.tolist() == [True, False, False]
        assert [message.split(':')[0] for message in solution.messages] == [
            'converged',
            'budget spent',
            'broken down',
        ]
        assert solution.iterates == {}

    def test_every_status_has_a_message(self):
        assert SolveStatus.RUNNING == 3
        for status in SolveStatus:
            words = status.name.lower().replace('_', ' ')
            assert status.message.startswith(words)
