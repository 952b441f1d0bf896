"""What runs on an accelerator, on one that is pretended."""

import sys

import pytest
from torch.utils import backend_registration

from ..isolation import started

pytestmark = pytest.mark.slow

PARTS = {
    'accelerator': 'cuda',
    'integration/test_cuda.py': 'cuda',
    # What tools compute, they compute on the accelerator that there is.
    'tools/analysis_tools': 'not slow',
    'tools/test_test.py': 'not slow',
}


@pytest.mark.skipif(
    not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'),
    reason='this torch has no devices that are written in Python',
)
@pytest.mark.parametrize('part', PARTS)
def test_pretended(root, environment, part):
    """In a process of its own: the device stays for as long as a process lives."""
    command = [sys.executable, '-m', 'pytest', '-n0', '-q', '--device', 'emu']
    # torch writes past Python why backward has ended the process.
    command += ['--capture=sys', '-p', 'no:cacheprovider', '-p', 'no:time_limit']
    command += ['-m', PARTS[part]]
    with started([*command, f'tests/{part}'], cwd=root, env=environment) as process:
        output = process.communicate(timeout=500)[0]
    print(output[-10000:])
    assert process.returncode == 0
    assert ' passed' in output


def test_old_torch(root, environment):
    """A torch that is too old says so before the first test."""
    code = (
        'import pytest, sys\n'
        'from torch.utils import backend_registration as module\n'
        "vars(module).pop('_setup_privateuseone_for_python_backend', None)\n"
        'sys.exit(pytest.main(sys.argv[1:]))'
    )
    command = [
        sys.executable,
        '-c',
        code,
        '-n0',
        '--device',
        'emu',
        'tests/accelerator',
    ]
    with started(command, cwd=root, env=environment) as process:
        output = process.communicate(timeout=300)[0]
    assert process.returncode == pytest.ExitCode.USAGE_ERROR
    assert 'has no devices in Python' in output
    assert 'passed' not in output
