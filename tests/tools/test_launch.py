import argparse
import os

import pytest
import torch
from mmengine.config import Config


@pytest.fixture(scope='module')
def launch(load_tool):
    return load_tool('launch.py')


@pytest.fixture
def load(launch, tmp_path, monkeypatch):
    """Loads a config for a runner from a command line."""
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    path = tmp_path / 'my_config.py'

    def run(*options, text=''):
        path.write_text(f"default_scope = 'mmseg'\n{text}")
        parser = argparse.ArgumentParser()
        parser.add_argument('config')
        launch.add_common_arguments(parser)
        return launch.load_runner_config(parser.parse_args([str(path), *options]))

    return run


class TestLoadRunnerConfig:
    @pytest.mark.parametrize(
        ('options', 'text', 'expected'),
        [
            ([], '', 'work_dirs/my_config'),
            ([], "work_dir = 'there'\n", 'there'),
            (['--work-dir', 'here'], "work_dir = 'there'\n", 'here'),
        ],
    )
    def test_work_dir(self, load, options, text, expected):
        assert load(*options, text=text).work_dir == expected

    def test_launcher_and_options(self, load):
        cfg = load('--launcher', 'pytorch', '--cfg-options', 'a.b=3')
        assert cfg.launcher == 'pytorch'
        assert cfg.a.b == 3
        assert load().launcher == 'none'

    @pytest.mark.parametrize('option', ['--local_rank', '--local-rank'])
    def test_local_rank(self, load, monkeypatch, option):
        """torch.distributed.launch gives the argument and torchrun the variable."""
        load(f'{option}=1')
        assert os.environ['LOCAL_RANK'] == '1'
        monkeypatch.setenv('LOCAL_RANK', '2')
        load(f'{option}=1')
        assert os.environ['LOCAL_RANK'] == '2'

    @pytest.mark.parametrize('text', ['', 'env_cfg = dict(dist_cfg=dict(timeout=9))'])
    def test_timeout(self, load, text):
        cfg = load('--timeout', '2.5', text=text)
        assert cfg.env_cfg.dist_cfg.timeout == 2.5
        assert load(text=text).get('env_cfg', {}) == (
            dict(dist_cfg=dict(timeout=9)) if text else {}
        )

    def test_no_toolbox(self, load):
        with pytest.raises(ValueError, match='default_scope'):
            load('--cfg-options', 'default_scope=None')


class TestCpuProcesses:
    @pytest.fixture
    def groups(self, launch, monkeypatch):
        """The groups of processes that were made."""
        made = []
        monkeypatch.setattr(
            torch.distributed,
            'init_process_group',
            lambda backend, timeout: made.append((backend, timeout.total_seconds())),
        )
        monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
        return made

    def test_one_process(self, launch, groups):
        cfg = Config(dict(launcher='none'))
        launch.prepare_cpu_processes(cfg)
        assert (groups, cfg.to_dict()) == ([], dict(launcher='none'))

    def test_accelerator(self, launch, groups, monkeypatch):
        monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
        cfg = Config(dict(launcher='slurm'))
        launch.prepare_cpu_processes(cfg)
        assert (groups, cfg.to_dict()) == ([], dict(launcher='slurm'))

    def test_several_processes(self, launch, groups):
        cfg = Config(dict(launcher='pytorch', find_unused_parameters=True))
        launch.prepare_cpu_processes(cfg)
        assert groups == [('gloo', 1800)]
        assert cfg.model_wrapper_cfg == dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=True,
        )

    def test_settings_of_the_config(self, launch, groups):
        env_cfg, wrapper = dict(dist_cfg=dict(timeout=60)), dict(type='Mine')
        cfg = dict(launcher='pytorch', env_cfg=env_cfg, model_wrapper_cfg=wrapper)
        cfg = Config(cfg)
        launch.prepare_cpu_processes(cfg)
        assert groups == [('gloo', 60)]
        assert cfg.model_wrapper_cfg == dict(type='Mine')

    @pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
    def test_other_launchers(self, launch, groups, launcher):
        with pytest.raises(ValueError, match=f"'pytorch', got '{launcher}'"):
            launch.prepare_cpu_processes(Config(dict(launcher=launcher)))
        assert groups == []


def test_build_runner(launch, monkeypatch):
    """A config may name a runner of its own."""
    monkeypatch.setattr(launch.apis.Runner, 'from_cfg', lambda cfg: ('stock', cfg))
    monkeypatch.setattr(
        launch.apis.RUNNERS, 'build', lambda cfg: (cfg.runner_type, cfg)
    )
    for runner_type, expected in ((None, 'stock'), ('Mine', 'Mine')):
        cfg = dict(launcher='none')
        if runner_type is not None:
            cfg['runner_type'] = runner_type
        assert launch.build_runner(Config(cfg))[0] == expected


class TestNamedRank:
    @pytest.mark.parametrize(
        'message',
        [
            '[unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation',
            '[pair.cc:553] Connection closed by peer [127.0.0.1]:54321',
            'Watchdog caught collective operation timeout: it timed out',
        ],
    )
    def test_of_two(self, launch, monkeypatch, message):
        monkeypatch.setattr(launch, 'get_world_size', lambda: 2)
        monkeypatch.setattr(launch, 'get_rank', lambda: 1)
        expected = pytest.raises(RuntimeError, match='rank 1 of 2 has waited')
        with expected as error, launch.named_rank():
            raise RuntimeError(message)
        assert str(error.value.__cause__) == message

    @pytest.mark.parametrize(
        ('n', 'error'),
        [
            (1, RuntimeError('Timed out')),
            (2, RuntimeError('size mismatch')),
            (2, ValueError('Timed out')),
        ],
    )
    def test_others_as_they_are(self, launch, monkeypatch, n, error):
        monkeypatch.setattr(launch, 'get_world_size', lambda: n)
        with pytest.raises(type(error)) as raised, launch.named_rank():
            raise error
        assert raised.value is error


class TestEndedProcessGroup:
    @pytest.fixture
    def begin(self, tmp_path):
        """Begins a group of one process, which the test or the fixture ends."""

        def call():
            torch.distributed.init_process_group(
                'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
            )

        yield call
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def test_begun_within(self, launch, begin):
        with launch.ended_process_group():
            begin()
        assert not torch.distributed.is_initialized()

    def test_begun_before(self, launch, begin):
        begin()
        with launch.ended_process_group():
            pass
        assert torch.distributed.is_initialized()

    def test_without_a_group(self, launch):
        with launch.ended_process_group():
            pass
        assert not torch.distributed.is_initialized()

    def test_error(self, launch, begin):
        """Others may wait in an exchange; ending the group could wait for them."""

        def fail():
            begin()
            raise RuntimeError('one')

        with pytest.raises(RuntimeError, match='one'), launch.ended_process_group():
            fail()
        assert torch.distributed.is_initialized()
