"""The plugin that asks for slow tests to be marked."""

import pytest

pytest_plugins = ['pytester']

SUITE = """
import time
import pytest

def work(seconds):
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass

@pytest.fixture(scope='module')
def shared():
    work({shared})

@pytest.fixture(scope='module')
def inner():
    work({inner})

@pytest.fixture(scope='module')
def outer(request):
    request.getfixturevalue('inner')

@pytest.fixture
def own():
    work({own})

@pytest.mark.{marker}
def test_first(shared, outer, own):
    work({call})

def test_second(shared, outer):
    time.sleep({sleep})
"""
NOTHING = dict(shared=0, inner=0, own=0, call=0, sleep=0, marker='fast')


@pytest.fixture
def outcomes(request, pytester):
    """Runs the suite with a limit of a fifth of a second."""
    plugin = type(request.config.pluginmanager.get_plugin('time_limit'))

    def run(stretch=1, **settings):
        pytester.makepyfile(SUITE.format(**{**NOTHING, **settings}))
        limit = plugin(0.2, lambda: stretch)
        result = pytester.inline_run('-p', 'no:xdist', plugins=[limit])
        reports = result.getreports('pytest_runtest_logreport')
        calls = [report for report in reports if report.when == 'call']
        failures = [str(report.longrepr) for report in result.getfailures()]
        return [report.outcome for report in calls], failures

    return run


def test_fast_tests_pass(outcomes):
    assert outcomes() == (['passed', 'passed'], [])


@pytest.mark.parametrize('what', ['call', 'own'])
def test_slow_test_fails(outcomes, what):
    """What is set up for the test alone belongs to it."""
    reports, (failure,) = outcomes(**{what: 0.4})
    assert reports == ['failed', 'passed']
    assert 'The test took 0.4 s, more than 0.2 s: make it faster, or mark' in failure


@pytest.mark.parametrize('what', ['shared', 'inner'])
def test_slow_shared_fixture_fails(outcomes, what):
    """It is measured by itself, and without the fixtures it asks for."""
    _, (failure,) = outcomes(**{what: 0.4})
    assert f'The fixture {what} took 0.4 s, more than 0.2 s' in failure


def test_marked_test_may_take_long(outcomes):
    assert outcomes(call=0.4, shared=0.4, marker='slow')[1] == []


def test_several_fast_parts_are_not_added(outcomes):
    assert outcomes(shared=0.15, inner=0.15, call=0.15)[1] == []


def test_waiting_is_not_work(outcomes):
    """As on a machine that is busy with something else."""
    assert outcomes(sleep=0.4)[1] == []


def test_busy_machine_gets_longer(outcomes):
    assert outcomes(stretch=3, call=0.4)[1] == []
