import os
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest

from mdeq_mm import apis

from ..isolation import started

CLASSIFIER = 'classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
RESNET = 'segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'
TRAINED = 'fcn_mdeq-micro-contraction_1xb8-600_earth-96x96'
MAX_BYTES, MAX_PIXELS = 50_000, 10_000


@pytest.fixture
def tool(load_tool):
    return load_tool('../demo/web_demo.py')


@pytest.fixture
def examples(tmp_path):
    folder = tmp_path / 'examples'
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (64, 72, 3), np.uint8)
    cv2.imwrite(str(folder / 'image.png'), image)
    cv2.imwrite(str(folder / 'large.png'), np.zeros((100, 101, 3), np.uint8))
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def models(save_model, tmp_path):
    """Config and checkpoint of a segmentor and of a classifier."""
    found = []
    for number, config in enumerate((SEGMENTOR, CLASSIFIER)):
        path, checkpoint = save_model(config)
        found += [path, str(Path(checkpoint).rename(tmp_path / f'{number}.pth'))]
    return found


class TestArguments:
    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['config'], 'a checkpoint behind it, got config alone'),
            ([Path(SEGMENTOR).stem], 'no weights come with the model'),
            (['config', 'a.pth', '--examples', 'no'], '--examples must be a folder'),
            (['config', 'a.pth', '--max-pixels', '0'], 'must be at least 1, got 0'),
            (['config', 'a.pth', '--port', '-1'], 'must be at least 1, got -1'),
        ],
    )
    def test_bad(self, tool, capsys, arguments, message):
        with pytest.raises(SystemExit):
            tool.parse_args(arguments)
        assert message in capsys.readouterr().err

    def test_this_machine_alone(self, tool):
        args = tool.parse_args(['config', 'a.pth'])
        assert args.host == '127.0.0.1'

    def test_without_gradio(self, tool, monkeypatch):
        monkeypatch.setitem(sys.modules, 'gradio', None)
        with pytest.raises(ImportError, match='pip install -r requirements/web.txt'):
            tool.main(['config', 'a.pth'])
        assert os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'


def test_names_among_files(tool):
    """The name of a model that comes with its weights stands for both files."""
    args = tool.parse_args(['config.py', 'a.pth', TRAINED, 'config.py', 'b.pth'])
    assert args.models == [
        ('config.py', 'a.pth'),
        apis.model_files(TRAINED),
        ('config.py', 'b.pth'),
    ]


def test_models_by_name(tool, models):
    args = tool.parse_args([*models, *models[:2], '--max-pixels', '100'])
    explorers = tool.load_explorers(args)
    stem = Path(SEGMENTOR).stem
    assert list(explorers) == [
        stem,
        Path(CLASSIFIER).stem,
        f'{stem}, {Path(models[1]).name}',
    ]


def test_model_without_equilibrium(tool, save_model):
    message = r'\.py with .*\.pth: a model with an equilibrium layer is needed'
    with pytest.raises(ValueError, match=message):
        tool.load_explorers(tool.parse_args(save_model(RESNET)))


def test_examples(tool, examples):
    assert tool.find_examples(None) == []
    names = [Path(path).name for path in tool.find_examples(examples)]
    assert names == ['image.png', 'large.png']


@pytest.fixture
def url(root, environment, models, examples):
    """The address of a page that is served."""
    pytest.importorskip('gradio', reason='needs requirements/web.txt')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-u', root / 'demo/web_demo.py', *models]
    command += ['--examples', examples, '--port', port]
    command += ['--max-bytes', MAX_BYTES, '--max-pixels', MAX_PIXELS]
    with started(command, env=environment) as process:
        for line in process.stdout:
            if 'Running on local URL' in line:
                break
        else:
            pytest.fail('the page is not served')
        yield f'http://127.0.0.1:{port}'


def evals_of(summary):
    return int(summary.strip('# ').split()[0])


@pytest.mark.slow
def test_requests(url, examples):
    """What a browser asks for, and what a stranger may."""
    client_module, httpx = map(pytest.importorskip, ('gradio_client', 'httpx'))
    client = client_module.Client(url, verbose=False)

    def predict(config, file, exponent, budget):
        return client.predict(
            Path(config).stem, file, exponent, budget, api_name='/predict'
        )

    image = client_module.handle_file(str(examples / 'image.png'))
    picture, legend, summary, figure = predict(SEGMENTOR, image, -3, 20)
    assert cv2.imread(picture).shape == (64, 72, 3)
    assert 'rgb(' in legend
    assert 'tolerance reached' in summary
    assert figure['plot'].startswith('data:image')
    assert evals_of(predict(SEGMENTOR, image, -1, 20)[2]) < evals_of(summary)
    assert evals_of(predict(SEGMENTOR, image, -6, 2)[2]) == 2
    picture, legend, summary, _ = predict(CLASSIFIER, image, -3, 20)
    assert cv2.imread(picture).shape == (256, 288, 3)
    assert legend.count('%</span>') == 5
    assert evals_of(summary) > 1

    def refused(file, message, exponent=-3, budget=20):
        with pytest.raises(Exception, match=message):
            predict(SEGMENTOR, file, exponent, budget)

    large, text = (
        client_module.handle_file(str(examples / name))
        for name in ('large.png', 'notes.txt')
    )
    refused(large, 'at most 10,000 pixels, got 101 x 100')
    refused(text, 'must be an image in the format of PNG')
    for n_bytes, status in ((MAX_BYTES, 200), (MAX_BYTES + 1, 413)):
        files = dict(files=('a.png', bytes(n_bytes)))
        response = httpx.post(f'{url}/gradio_api/upload', files=files, timeout=60)
        assert response.status_code == status

    def answer_to(path):
        file = dict(path=str(path), meta=dict(_type='gradio.FileData'))
        data = dict(data=[Path(SEGMENTOR).stem, file, -3, 20])
        call = f'{url}/gradio_api/call/predict'
        event = httpx.post(call, json=data, timeout=60).json()['event_id']
        return httpx.get(f'{call}/{event}', timeout=60).text

    files = dict(files=('a.png', (examples / 'image.png').read_bytes()))
    (uploaded,) = httpx.post(f'{url}/gradio_api/upload', files=files, timeout=60).json()
    assert 'event: complete' in answer_to(uploaded)
    assert 'event: error' in answer_to(examples / 'image.png')
    foreign = dict(path='https://example.org/a.png', meta=dict(_type='gradio.FileData'))
    refused(foreign, 'no address is opened')
    refused(image, '.', exponent=-9)
    refused(image, '.', budget=1000)


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window."""
    webdriver = pytest.importorskip('selenium.webdriver')
    programs = [shutil.which(name) for name in ('chromium', 'chromedriver')]
    if None in programs:
        pytest.skip('needs chromium and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for option in (
        *('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run'),
        *('disable-background-networking', 'disable-component-update', 'disable-sync'),
        *('window-size=1280,1100', f'user-data-dir={tmp_path / "browser"}'),
    ):
        options.add_argument(f'--{option}')
    service = webdriver.ChromeService(programs[1])
    with ExitStack() as stack:
        driver = webdriver.Chrome(options, service)
        stack.callback(driver.quit)
        yield driver


@pytest.mark.slow
def test_page(url, browser):
    def wait_for(find):
        for _ in range(240):
            if found := find():
                return found
            time.sleep(0.5)
        return pytest.fail('what is waited for does not come')

    def element(css):
        return wait_for(lambda: browser.find_elements('css selector', css))[0]

    def text(css):
        script = 'return document.querySelector(arguments[0])?.textContent ?? ""'
        return browser.execute_script(script, css)

    def summary_after(before):
        """Waits for another summary than the one before."""

        def find():
            summary = text('#summary h3')
            return summary if 'evaluations' in summary and summary != before else None

        return wait_for(find)

    browser.get(url)
    element('button.gallery-item').click()
    first = summary_after('')
    element('#prediction img')
    element('#convergence img')
    assert '%' in text('#legend')

    home = '\ue011'  # the key, which moves a slider to its left end
    element('#tolerance input[type=range]').send_keys(home)
    tight = summary_after(first)
    assert evals_of(tight) > evals_of(first)
    element('#budget input[type=range]').send_keys(home)
    short = summary_after(tight)
    assert evals_of(short) == 1

    element('input[role=combobox]').click()
    element(f'li[aria-label="{Path(CLASSIFIER).stem}"]').click()
    assert evals_of(summary_after(short)) > 1
    assert text('#legend').count('%') == 5
    addresses = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert addresses
    assert all(address.startswith((url, 'data:', 'blob:')) for address in addresses)
