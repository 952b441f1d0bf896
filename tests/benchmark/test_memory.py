import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdeq_mm.benchmark import (
    Case,
    Subject,
    measure_in_process,
    measure_memory,
    memory,
    peak_bytes,
)

PEAK_OF_A_TEMPORARY = """
import torch
from mdeq_mm.benchmark import peak_bytes

def case():
    torch.ones(2**24)  # 64 MiB, freed at once

case()
print(peak_bytes(case, 'cpu'))
"""


class TestPeakBytes:
    @pytest.mark.slow
    def test_peak_is_not_the_end(self):
        # Here the allocator may have kept as much from earlier tests, and there it must
        # not be told to keep anything.
        environment = {k: v for k, v in os.environ.items() if 'MALLOC_' not in k}
        fresh = [sys.executable, '-c', PEAK_OF_A_TEMPORARY]
        output = subprocess.check_output(fresh, text=True, env=environment)
        peak = int(output.split()[-1])
        assert 0.8 * 2**26 < peak < 1.5 * 2**26

    def test_other_system(self, monkeypatch, tmp_path):
        monkeypatch.setattr(memory, '_CLEAR_REFS', tmp_path / 'no/such/file')
        with pytest.raises(RuntimeError, match='as on Linux'):
            peak_bytes(lambda: None, 'cpu')


class TestMeasureMemory:
    def test_processes_take_turns(self, config, monkeypatch):
        calls = []

        def measure(subject, case, shape, device):
            calls.append((subject.label, case, shape, device))
            return 2**20 * len(calls)

        monkeypatch.setattr(memory, 'measure_in_process', measure)
        subjects = [Subject(config), Subject('resnet50')]
        measured = measure_memory(subjects, (2, 3, 16, 16), 3, 'cpu')
        mine = Path(config).stem
        cases = [(mine, case) for case in Case]
        cases += [('resnet50', Case.INFERENCE), ('resnet50', Case.TRAINING)]
        assert calls == [(*case, (2, 3, 16, 16), 'cpu') for case in cases] * 3
        rounds = measured['resnet50']['training step']['rounds']
        assert rounds == [6 * 2**20, 12 * 2**20, 18 * 2**20]
        assert measured[mine]['inference']['bytes'] == 8 * 2**20

    @pytest.mark.slow
    def test_history_of_the_solver(self, config):
        before = dict(os.environ)
        subject, shape = Subject(config), (1, 3, 32, 32)
        once, solve = (
            measure_in_process(subject, case, shape, 'cpu')
            for case in (Case.EVALUATION, Case.INFERENCE)
        )
        # The state has 30,720 floats; 10 updates are stored in 11 states.
        history = 4 * 30_720 * 11
        assert 0.5 * history < solve - once < 4 * history
        assert os.environ == before

    @pytest.mark.slow
    def test_small_is_near_its_floor(self, root):
        """As its recipe is; on CPU, where the resident set is measured."""
        config = root / 'configs/classification/mdeq-small_4xb32_in1k.py'
        budgets = ['forward_solver.max_evals', 'gradient.solver.max_evals']
        # Enough to fill the histories.
        options = {f'model.backbone.{budget}': 13 for budget in budgets}
        measured = measure_memory(
            [Subject(str(config), options)], (2, 3, 224, 224), 1, 'cpu'
        )
        peak = {case: result['bytes'] for case, result in measured[config.stem].items()}
        assert peak['training step'] <= 1.1 * peak['training step of one application']
        assert peak['inference'] <= 2 * peak['one bare evaluation']
