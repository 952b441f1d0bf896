"""What is cut out of a checkpoint of several tasks, by the stock models of each."""

import json
from copy import deepcopy

import pytest
import torch
from mmengine.config import Config

from mdeq_mm.apis import build_model, load_config, load_model
from mdeq_mm.deq import Unrolled

from ...multi_task import BACKBONES, batches, model_config

TASKS = dict(classes='Accuracy', pixels='IoUMetric')


def make(folder, backbone):
    """Writes a config and a checkpoint; returns them and the model."""
    loaders = {
        task: dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type='TaskImages', task=task),
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
        for task in TASKS
    }
    cfg = Config(
        dict(
            default_scope='mmengine',
            model=model_config(BACKBONES[backbone]),
            test_dataloader=loaders,
            test_cfg=dict(type='MultiTaskTestLoop'),
            test_evaluator={task: dict(type=name) for task, name in TASKS.items()},
        )
    )
    cfg.dump(folder / 'config.py')
    model = build_model(cfg)
    model.init_weights()
    if backbone == 'MDEQ':
        model.backbone.equilibrium.mode = Unrolled(2)
    classes = dict(classes=('a', 'b', 'c'))
    meta = dict(dataset_meta=dict(classes=classes, pixels=classes))
    checkpoint = dict(meta=meta, state_dict=model.state_dict(), optimizer={})
    torch.save(checkpoint, folder / 'whole.pth')
    return folder / 'config.py', folder / 'whole.pth', model.eval()


@pytest.fixture
def split(run_tool, tmp_path):
    """Runs the tool."""

    def split(config, checkpoint, out):
        tool = 'misc/split_multitask.py'
        run_tool(tool, config, checkpoint, '--out-dir', out, cwd=tmp_path)

    return split


@pytest.mark.parametrize('backbone', BACKBONES)
def test_predictions_are_identical(split, tmp_path, backbone):
    config, checkpoint, model = make(tmp_path, backbone)
    out = tmp_path / 'new/split'
    split(config, checkpoint, out)
    expected = {'classes.pth', 'classes.py', 'pixels.pth', 'pixels.py'}
    assert {path.name for path in out.iterdir()} == expected
    data = batches(classes=3, pixels=2)
    with torch.no_grad():
        whole = model.val_step(deepcopy(data))
    for task, name in (('classes', 'ImageClassifier'), ('pixels', 'EncoderDecoder')):
        content = torch.load(out / f'{task}.pth', weights_only=True)
        assert set(content) == {'meta', 'state_dict'}
        assert content['meta']['dataset_meta'] == dict(classes=('a', 'b', 'c'))
        single = load_model(load_config(out / f'{task}.py'), out / f'{task}.pth', 'cpu')
        assert type(single).__name__ == name
        if backbone == 'MDEQ':
            assert single.backbone.equilibrium.mode == Unrolled(2)
        with torch.no_grad():
            alone = single.val_step(data[task])
        for one, other in zip(alone, whole[task]):
            if task == 'classes':
                assert torch.equal(one.pred_score, other.pred_score)
            else:
                assert torch.equal(one.seg_logits.data, other.seg_logits.data)


def test_metrics_are_identical(split, run_tool, tmp_path):
    config, checkpoint, _ = make(tmp_path, 'ResNet')
    split(config, checkpoint, tmp_path)

    def metrics(config, checkpoint, work_dir):
        arguments = ('--work-dir', work_dir)
        run_tool('test.py', config, checkpoint, *arguments, cwd=tmp_path)
        (path,) = work_dir.glob('*/*.json')
        found = json.loads(path.read_text())
        return {name: v for name, v in found.items() if 'time' not in name}

    whole = metrics(config, checkpoint, tmp_path / 'whole')
    alone = {
        f'{task}/{name}': value
        for task in TASKS
        for name, value in metrics(
            tmp_path / f'{task}.py', tmp_path / f'{task}.pth', tmp_path / task
        ).items()
    }
    assert alone == whole
    assert {'classes/accuracy/top1', 'pixels/mIoU'} <= set(alone)


class TestErrors:
    def test_model_of_one_task(self, split, root, tmp_path):
        config = root / 'configs/classification/mdeq-tiny_1xb64_digits.py'
        model = build_model(load_config(config))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'one.pth')
        with pytest.raises(ValueError, match='must be of a MultiTaskModel, got Image'):
            split(config, tmp_path / 'one.pth', tmp_path / 'out')
        assert not (tmp_path / 'out').exists()

    def test_weights_of_another_model(self, split, tmp_path):
        config, checkpoint, _ = make(tmp_path, 'ResNet')
        content = torch.load(checkpoint)
        del content['state_dict']['backbone.conv1.weight']
        torch.save(content, checkpoint)
        with pytest.raises(ValueError, match='1 missing: backbone.conv1.weight'):
            split(config, checkpoint, tmp_path / 'out')
        assert not (tmp_path / 'out').exists()
