"""A checkpoint of another model ends the run before it works."""

import pytest
import torch
from mmengine.hooks import EMAHook

from mdeq_mm.engine import StrictLoadingHook

pytestmark = pytest.mark.versions


@pytest.fixture
def trained(make_runner):
    runner = make_runner([dict(type='EMAHook')], length=3)
    runner.train()
    return runner.work_dir + '/iter_3.pth'


def change(path, edit):
    checkpoint = torch.load(path, map_location='cpu')
    edit(checkpoint['state_dict'])
    torch.save(checkpoint, path)


@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook')]])
@pytest.mark.parametrize('resume', [False, True])
class TestRun:
    def runner(self, make_runner, trained, hooks, resume):
        hooks = [*hooks, dict(type='StrictLoadingHook', name='a.pth', hint='a hint')]
        return make_runner(hooks, length=6, load_from=trained, resume=resume)

    def test_same_model(self, make_runner, trained, hooks, resume):
        runner = self.runner(make_runner, trained, hooks, resume)
        runner.train()
        assert runner.iter == 6
        assert any(isinstance(hook, StrictLoadingHook) for hook in runner.hooks)

    @pytest.mark.parametrize(
        ('edit', 'message'),
        [
            (lambda state: state.pop('fc.bias'), '1 missing: fc.bias'),
            (lambda state: state.update(a=torch.ones(1)), '1 unexpected: a'),
            (
                lambda state: state.update({'fc.bias': torch.ones(9)}),
                '1 misshapen: size mismatch for fc.bias',
            ),
            (lambda state: state.clear(), 'missing: '),
        ],
    )
    @pytest.mark.slow
    def test_other_model(self, make_runner, trained, hooks, resume, edit, message):
        change(trained, edit)
        runner = self.runner(make_runner, trained, hooks, resume)
        with pytest.raises(ValueError, match='weights of a.pth do not fit') as error:
            runner.train()
        assert message in str(error.value)
        assert str(error.value).endswith('\na hint')
        assert runner.iter == 0


def test_first_of_the_hooks_that_use_the_weights(make_runner):
    runner = make_runner([dict(type='EMAHook'), dict(type='StrictLoadingHook')])
    kinds = [type(hook) for hook in runner.hooks]
    assert kinds.index(StrictLoadingHook) < kinds.index(EMAHook)
