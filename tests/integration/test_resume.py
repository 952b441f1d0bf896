"""Interrupted training ends where uninterrupted training does."""

import shutil

import pytest
import torch

from ..interrupted import write_config

pytestmark = pytest.mark.versions
# The interruption falls into the unrolled iterations, and what is resumed goes on to
# the equilibrium.
SHORT = dict(workers=0, iters=6, interval=2, pretrain_iters=3)


@pytest.mark.slow
def test_killed_and_resumed(
    run_process, killed_training, workplace, tmp_path, state_of
):
    settings = dict(workers=2, iters=12, interval=4, pretrain_iters=6)
    path = write_config(tmp_path / 'config.py', **settings)
    run_process('train.py', path, '--work-dir', tmp_path / 'whole', cwd=workplace)
    expected = state_of(tmp_path / 'whole/iter_12.pth')

    killed = tmp_path / 'killed'
    killed_training(path, killed, 'iter_4', workplace)
    assert not (killed / 'iter_12.pth').exists()
    output = run_process(
        'train.py', path, '--work-dir', killed, '--resume', cwd=workplace
    )
    assert 'resumed epoch: 0, iter: 4' in output
    actual = state_of(killed / 'iter_12.pth')
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.slow
def test_resumed_in_the_main_process(run_tool, workplace, tmp_path, state_of):
    """Without workers, augmentation and dropout share the generators."""
    path = write_config(tmp_path / 'config.py', **SHORT)
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run_tool('train.py', path, '--work-dir', whole, cwd=workplace)
    run_tool(
        *('train.py', path, '--work-dir', resumed, '--resume', whole / 'iter_2.pth'),
        cwd=workplace,
    )
    expected, actual = (state_of(folder / 'iter_6.pth') for folder in (whole, resumed))
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.fixture(scope='module')
def trained(run_tool, workplace, tmp_path_factory):
    """Config and work directory of a training with three checkpoints."""
    folder = tmp_path_factory.mktemp('trained')
    path = write_config(folder / 'config.py', **SHORT)
    run_tool('train.py', path, '--work-dir', folder / 'run', cwd=workplace)
    return path, folder / 'run'


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path):
    path.write_bytes(b'')


def last_is_empty(run):
    (run / 'last_checkpoint').write_text('')


def last_is_missing(run):
    (run / 'last_checkpoint').unlink()


def last_names_another_folder(run):
    (run / 'last_checkpoint').write_text('/somewhere/else/iter_6.pth')


def newest_is_truncated(run):
    truncate(run / 'iter_6.pth')


def newest_is_empty(run):
    empty(run / 'iter_6.pth')


def newest_two_are_damaged(run):
    truncate(run / 'iter_6.pth')
    empty(run / 'iter_4.pth')


def all_are_damaged(run):
    for path in run.glob('*.pth'):
        truncate(path)


@pytest.mark.parametrize(
    ('damage', 'taken', 'skipped'),
    [
        (last_is_empty, 6, ['last_checkpoint: it is empty']),
        (last_is_missing, 6, []),
        (last_names_another_folder, 6, []),
        (newest_is_truncated, 4, ['iter_6.pth: ']),
        (newest_is_empty, 4, ['iter_6.pth: ']),
        (newest_two_are_damaged, 2, ['iter_6.pth: ', 'iter_4.pth: ']),
        (all_are_damaged, None, ['iter_6.pth: ', 'iter_4.pth: ', 'iter_2.pth: ']),
        (shutil.rmtree, None, []),
    ],
)
@pytest.mark.slow
def test_after_a_power_cut(
    run_tool, trained, workplace, tmp_path, state_of, damage, taken, skipped
):
    """The newest whole one is taken, the log says so, and the end is the same."""
    path, run = trained
    expected = state_of(run / 'iter_6.pth')
    logs = list(run.glob('*/*.log'))
    work_dir = tmp_path / 'moved'
    # Without the logs: a run that begins within the same second adds to them.
    shutil.copytree(run, work_dir, ignore=lambda *_: [log.parent.name for log in logs])
    damage(work_dir)
    run_tool('train.py', path, '--work-dir', work_dir, '--resume', cwd=workplace)
    (log,) = work_dir.glob('*/*.log')
    text = log.read_text()
    if taken is None:
        assert 'no whole checkpoint found: starting anew' in text
        assert 'resumed epoch' not in text
    else:
        assert f'resuming from {work_dir}/iter_{taken}.pth' in text
        assert f'resumed epoch: 0, iter: {taken}' in text
    found = [line for line in text.splitlines() if line.startswith('skipped ')]
    assert len(found) == len(skipped)
    for line, why in zip(found, skipped):
        assert f'/{why}' in line
    actual = state_of(work_dir / 'iter_6.pth')
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    if taken != 6:  # something was saved
        last = (work_dir / 'last_checkpoint').read_text()
        assert last == str(work_dir / 'iter_6.pth')


class TestResumeFromWhatIsNone:
    @pytest.mark.parametrize(
        'drop', [['optimizer'], ['message_hub', 'optimizer', 'meta']]
    )
    def test_weights_alone(self, run_tool, trained, workplace, tmp_path, drop):
        path, run = trained
        checkpoint = torch.load(run / 'iter_4.pth', map_location='cpu')
        for key in drop:
            del checkpoint[key]
        torch.save(checkpoint, tmp_path / 'weights.pth')
        work_dir = tmp_path / 'new'
        with pytest.raises(ValueError, match='weights.pth is no checkpoint to resume'):
            run_tool(
                *('train.py', path, '--work-dir', work_dir),
                *('--resume', tmp_path / 'weights.pth'),
                cwd=workplace,
            )
        assert not work_dir.exists()

    @pytest.mark.parametrize(
        'option',
        ['model.backbone.arch.channels=[8,16,32]', 'model.decode_head.num_classes=5'],
    )
    def test_another_model(self, run_tool, trained, workplace, tmp_path, option):
        path, run = trained
        work_dir = tmp_path / 'new'
        with pytest.raises(
            ValueError, match='iter_4.pth do not fit EncoderDecoder'
        ) as e:
            run_tool(
                *('train.py', path, '--work-dir', work_dir),
                *('--resume', run / 'iter_4.pth', '--cfg-options', option),
                cwd=workplace,
            )
        assert 'misshapen: size mismatch for' in str(e.value)
        assert not list(work_dir.glob('*.pth'))
