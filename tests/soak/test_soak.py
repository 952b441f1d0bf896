"""The short form of what takes too long for a test, and that its checks can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ..isolation import started
from . import growth, kills, uses

HERE = Path(__file__).resolve().parent
linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


@linux
@pytest.mark.slow
def test_short_form(environment, tmp_path):
    out = tmp_path / 'table.md'
    command = [sys.executable, HERE / 'run.py', '--form', 'short', '--out', out]
    with started(command, cwd=tmp_path, env=environment) as process:
        output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output[-6000:]
    rows = [line.split('|')[1].strip() for line in out.read_text().splitlines()[2:]]
    assert rows == [
        *('kills', 'kills of two processes', 'steps', 'builds'),
        *('sizes', 'sizes, compiled', 'threads'),
    ]


@linux
class TestGrowth:
    def test_nothing_grows(self):
        figures, faults = growth.grows(lambda number: torch.rand(3), 12)
        assert faults == []
        assert figures['tensors'] == figures['hooks'] == figures['descriptors'] == 0

    def test_tensors(self):
        kept = []
        _, faults = growth.grows(lambda number: kept.append(torch.rand(3)), 12)
        assert faults == ['tensors grew by 2 in 2 steps']

    def test_hooks(self):
        model = nn.Sequential(nn.Linear(1, 1))

        def step(number):
            model[0].register_forward_hook(print)

        _, faults = growth.grows(step, 12, model)
        assert 'hooks grew by 2 in 2 steps' in faults

    def test_descriptors(self, tmp_path):
        kept = []
        _, faults = growth.grows(
            lambda number: kept.append((tmp_path / str(number)).open('w')), 12
        )
        for file in kept:
            file.close()
        assert faults == ['descriptors grew by 2 in 2 steps']

    def test_memory(self):
        kept = []
        _, faults = growth.grows(lambda number: kept.append(bytearray(16 << 20)), 12)
        assert len(faults) == 1
        assert faults[0].startswith('kib grew by')

    def test_classes(self):
        kept = []
        _, faults = growth.grows(
            lambda number: kept.append(type('Part', (nn.Module,), {})), 12
        )
        assert faults == ['classes grew by 2 in 2 steps']


class TestKills:
    def test_same(self):
        state = dict(a=torch.ones(2), b=[1, (2.0, torch.zeros(1))])
        assert kills.same(dict(a=torch.ones(2), b=[1, (2.0, torch.zeros(1))]), state)
        assert not kills.same(dict(a=torch.ones(2), b=[1, (2.0, torch.ones(1))]), state)
        assert not kills.same(dict(a=torch.ones(2)), state)
        assert not kills.same(dict(state, a=torch.tensor([1, 1 + 1e-7])), state)

    @pytest.mark.parametrize(
        ('last', 'newest', 'torn', 'unfinished'),
        [
            ('iter_4.pth', 4, 0, False),
            ('', 4, 0, True),
            ('iter_2.pth', 4, 0, True),
            (None, 4, 0, True),
        ],
    )
    def test_what_is_left(self, tmp_path, last, newest, torn, unfinished):
        for iteration in (2, 4):
            path = tmp_path / f'iter_{iteration}.pth'
            torch.save(dict(meta=dict(iter=iteration)), path)
        if last is not None:
            (tmp_path / 'last_checkpoint').write_text(last and str(tmp_path / last))
        left = kills.Checkpoints.of(tmp_path)
        assert left == kills.Checkpoints(newest, torn, unfinished)

    def test_torn_file(self, tmp_path):
        torch.save(dict(meta=dict(iter=4)), tmp_path / 'iter_4.pth')
        content = (tmp_path / 'iter_4.pth').read_bytes()
        (tmp_path / 'iter_6.pth').write_bytes(content[:100])
        (tmp_path / 'last_checkpoint').write_text('iter_6.pth')
        assert kills.Checkpoints.of(tmp_path) == kills.Checkpoints(4, 1, True)


class TestUses:
    def test_difference(self):
        one = (torch.ones(4), torch.ones(2))
        assert uses.difference(one, one) == 0
        other = (torch.ones(4), torch.tensor([1.0, 1.5]))
        assert uses.difference(other, one) == pytest.approx(0.5 / 2**0.5)

    def test_model_that_remembers(self, monkeypatch):
        make = uses.make

        def remembers(**kwargs):
            return make(initial_guess=dict(type='PreviousGuess'))

        monkeypatch.setattr(uses, 'make', remembers)
        _, faults = uses.use_threads(2, seed=0)
        assert faults
