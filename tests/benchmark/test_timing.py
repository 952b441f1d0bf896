import time

import pytest
import torch

from mdeq_mm.benchmark import interleave, timed


def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class TestTimed:
    def test_counts_the_processor(self):
        assert 0.05 <= timed(lambda: work(0.05), 'cpu') < 0.2

    def test_does_not_count_waiting(self):
        assert timed(lambda: time.sleep(0.05), 'cpu') < 0.03


class TestInterleave:
    def test_cases_take_turns(self):
        calls = []
        cases = {name: lambda name=name: calls.append(name) for name in 'ab'}
        seconds = interleave(cases, 3, 'cpu')
        assert calls == ['a', 'b'] * 4  # once before, to warm up
        assert [len(rounds) for rounds in seconds.values()] == [3, 3]

    def test_each_has_its_own_time(self):
        cases = dict(short=lambda: work(0.01), long=lambda: work(0.04))
        seconds = interleave(cases, 2, 'cpu')
        assert min(seconds['long']) > max(seconds['short'])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_on_the_device():
    a = torch.rand(2000, 2000, device='cuda')
    assert 0 < timed(lambda: a @ a, 'cuda') < 1
