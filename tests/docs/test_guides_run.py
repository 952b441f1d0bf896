"""What the guides show runs: commands on a model of one's own, and lines of Python.

What trains, and what needs several processes or another toolbox, runs in tests of its
own.
"""

import re
import shlex
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, MODELS, DefaultScope
from mmseg.apis import inference_model, init_model

from mdeq_mm.apis import build_model

from ..isolation import load_tool
from .guides import GUIDES, ROOT, blocks

SEGMENTOR = 'segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'
SCENES = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CLASSIFIER = 'classification/mdeq-tiny_1xb64_digits.py'
# Those that are about something which other tests have.
ELSEWHERE = (
    '--amp',  # needs a GPU
    'benchmark.py memory',  # takes minutes, as the next one
    'benchmark_video.py',
    'web_demo.py',  # serves until it is interrupted
    'split_multitask.py',
    'DIR/',
    'mdeq_to_mm.py',
    'mmdet',
)
SETTINGS = dict(max_evals=4)


@pytest.fixture(scope='module')
def place(run_tool, tmp_path_factory):
    """A folder with the files that the guides name, and two models on few images."""
    path = tmp_path_factory.mktemp('place')
    run_tool('dataset_converters/digits.py', cwd=path)
    scenes = Config.fromfile(ROOT / 'configs' / SCENES)
    for name, recipe in (('segmentor', SEGMENTOR), ('classifier', CLASSIFIER)):
        cfg = Config.fromfile(ROOT / 'configs' / recipe)
        if name == 'segmentor':
            # Both have eleven classes.
            for part in ('train', 'val', 'test'):
                cfg[f'{part}_dataloader'] = scenes[f'{part}_dataloader']
            cfg.train_cfg.update(max_iters=2, val_interval=2)
            cfg.model.data_preprocessor.size = (64, 64)
        for part in ('train', 'val', 'test'):
            cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)
            cfg[f'{part}_dataloader'].dataset.indices = 2
        cfg.model.backbone.forward_solver.update(SETTINGS)
        cfg.model.backbone.gradient.solver.update(SETTINGS)
        cfg.dump(path / f'{name}.py')
        model = build_model(cfg)
        classes = [str(label) for label in range(11)]
        meta = dict(dataset_meta=dict(classes=classes))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), path / f'{name}.pth')
    image = np.random.default_rng(0).integers(0, 256, (80, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(path / 'image.png'), image)
    video = cv2.VideoWriter(
        str(path / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (128, 80)
    )
    for _ in range(3):
        video.write(image)
    video.release()
    (path / 'checkpoints').mkdir()
    shutil.copy(path / 'segmentor.pth', path / 'model.pth')
    return path


def commands():
    """Returns each command that starts a tool on CONFIG once."""
    found = {}
    for block in blocks('shell', GUIDES):
        (text,) = block.values
        for line in text.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ['python'] or 'CONFIG' not in words:
                continue
            if words[1].endswith('.py') and not any(e in line for e in ELSEWHERE):
                found.setdefault(' '.join(words[1:]), block.id)
    return [pytest.param(line, id=f'{page}: {line}') for line, page in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize('line', commands())
def test_command(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    files = dict(
        CONFIG='segmentor.py',
        CHECKPOINT='segmentor.pth',
        IMAGE='image.png',
        IMAGE_OR_FOLDER='image.png',
        VIDEO_OR_FOLDER='video.mp4',
    )
    path, *arguments = shlex.split(line)
    tool = load_tool(f'../{path}')
    tool.main([files.get(word, word) for word in arguments])
    for number, word in enumerate(arguments):
        if word in ('--out', '--show-dir'):
            assert (place / arguments[number + 1]).exists()


def scripts():
    """Returns the blocks of Python that are no whole configs and no doctests.

    Those that read an exported file are left out: tests of the tool export.
    """
    no_script = re.compile(
        r'^>>>|^_base_ = |mmdet|\.\.\.,|onnxruntime|export\.load', re.MULTILINE
    )
    return [
        block
        for block in blocks('python', GUIDES)
        if not no_script.search(block.values[0])
    ]


def is_config(text):
    """Whether a block holds nothing but settings."""
    return re.match(r'[a-z_]+ = dict\(|[a-z_]+ = \[', text) and 'import ' not in text


@pytest.mark.parametrize(
    'text', [block for block in scripts() if is_config(block.values[0])]
)
def test_settings(text, tmp_path, monkeypatch):
    """Settings that a guide shows are those of a config that can be built."""
    # A module of the reader's own, that one of them imports.
    (tmp_path / 'my_equilibria.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / 'config.py'
    path.write_text(f'CHECKPOINT = "model.pth"\n{text}')
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmseg'):
        for hook in cfg.get('default_hooks', {}).values():
            if 'type' in hook:
                HOOKS.build(hook)
        for metric in cfg.get('val_evaluator', ()):
            METRICS.build(metric)
        backbone = cfg.get('backbone') or cfg.get('model', {}).get('backbone', {})
        if 'type' in backbone:
            MODELS.build(backbone)
    shown = {key for key in cfg if key != 'CHECKPOINT'}
    assert shown


def pages():
    """Returns the scripts of each page, in their order."""
    found = {}
    for block in scripts():
        if not is_config(block.values[0]):
            page = block.id.rpartition(':')[0]
            found.setdefault(page, []).append(block.values[0])
    return [pytest.param(texts, id=page) for page, texts in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize('texts', pages())
def test_scripts(texts, place, monkeypatch):
    """They run one after the other, given a model, images, and what a reader has."""
    monkeypatch.chdir(place)
    image = cv2.imread('image.png')
    names = dict(
        image=image,
        frames=[image] * 2,
        images=torch.rand(1, 3, 64, 64),
        show=print,
        out_of_time=lambda: False,
    )
    for text in texts:
        name = 'classifier' if 'mmpretrain' in text else 'segmentor'
        names.update(CONFIG=f'{name}.py', CHECKPOINT=f'{name}.pth')
        # The toolboxes keep a scope per process; each block may be of another one.
        scope = 'mmpretrain' if name == 'classifier' else 'mmseg'
        with DefaultScope.overwrite_default_scope(scope):
            if 'model' not in names and re.search(r'\bmodel\b', text):
                names['model'] = init_model(
                    names['CONFIG'], names['CHECKPOINT'], device='cpu'
                )
                names['inference_model'] = inference_model
            exec(compile(text, 'block', 'exec'), names)


def test_blocks_are_found():
    assert len(commands()) > 10
    assert len(scripts()) > 20
    assert len(pages()) > 5
