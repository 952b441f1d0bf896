"""What every tool that loads weights does with a file that is not what it needs."""

import pytest
import torch

from mdeq_mm import apis

from ..checkpoints import hostile
from ..isolation import run_main

pytestmark = pytest.mark.versions
CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'
OPTIONS = [
    *('--cfg-options', 'test_dataloader.num_workers=0'),
    *('test_dataloader.persistent_workers=False', 'test_dataloader.batch_size=1'),
    'test_dataloader.dataset.indices=1',
]
TOOLS = {
    'test.py': ['--work-dir', 'run'],
    'analysis_tools/plot_segmentation.py': ['--num-samples', '1'],
    'analysis_tools/plot_convergence.py': ['--num-samples', '1', '--max-evals', '2'],
    'analysis_tools/compare_gradients.py': ['--max-evals', '5'],
}


@pytest.fixture(scope='module')
def state_dicts(root):
    """Weights of the model of a config, with settings changed."""

    def build(config, **settings):
        cfg = apis.load_config(root / config, settings)
        return apis.build_model(cfg).state_dict()

    return dict(
        own=build(CONFIG),
        narrow=build(CONFIG, **{'model.backbone.arch.channels': [8, 16, 32]}),
        classifier=build(CLASSIFIER),
    )


@pytest.fixture(params=list(TOOLS))
def run(request, root, scenes):
    """Runs a tool on a file of this content."""

    def with_content(content, *options, save=hostile.archive):
        if content is not None:
            save('model.pth', content)
        return run_main(
            *(request.param, root / CONFIG, 'model.pth', *options),
            *TOOLS[request.param],
            *OPTIONS,
            cwd=scenes,
        )

    with_content.tool = request.param
    return with_content


class TestWrongWeights:
    @pytest.mark.parametrize(
        ('edit', 'messages'),
        [
            (lambda own: {'a': 1}, ['missing: backbone.stem', '1 unexpected: a']),
            (lambda own: {}, ['missing: backbone.stem']),
            (lambda own: dict(own, head=torch.ones(1)), ['1 unexpected: head']),
            (
                lambda own: {k: v for k, v in own.items() if 'conv_seg' not in k},
                ['2 missing: decode_head.conv_seg.weight, decode_head.conv_seg.bias'],
            ),
        ],
    )
    @pytest.mark.slow
    def test_lists_them(self, run, state_dicts, edit, messages):
        with pytest.raises(ValueError, match='model.pth do not fit') as error:
            run(dict(state_dict=edit(state_dicts['own'])))
        for message in messages:
            assert message in str(error.value)

    @pytest.mark.parametrize(
        ('name', 'messages'),
        [
            ('narrow', ['misshapen: size mismatch for backbone']),
            ('classifier', ['missing: ', 'unexpected: neck', 'misshapen']),
        ],
    )
    @pytest.mark.slow
    def test_other_models(self, run, state_dicts, name, messages):
        with pytest.raises(ValueError, match='model.pth do not fit') as error:
            run(dict(state_dict=state_dicts[name]))
        for message in messages:
            assert message in str(error.value)

    @pytest.mark.parametrize('content', [[1, 2], 'text', torch.zeros(3)])
    @pytest.mark.slow
    def test_no_state_dict(self, run, content):
        with pytest.raises(ValueError, match='model.pth holds no state dict'):
            run(content)

    def test_torn_and_absent(self, run, state_dicts, scenes):
        with pytest.raises(FileNotFoundError, match='there is no checkpoint model.pth'):
            run(None)
        torch.save(state_dicts['own'], scenes / 'model.pth')
        data = (scenes / 'model.pth').read_bytes()
        for length, message in ((0, 'it is empty'), (len(data) // 2, 'is truncated')):
            (scenes / 'model.pth').write_bytes(data[:length])
            with pytest.raises(ValueError, match=f'model.pth .*{message}'):
                run(None)

    @pytest.mark.parametrize('save', hostile.FORMATS)
    def test_hostile(self, run, scenes, save):
        content = hostile.in_meta(hostile.makes(scenes / 'harm'))
        with pytest.raises(ValueError, match='nothing in it was run'):
            run(content, save=save)
        assert not (scenes / 'harm').exists()


class TestRightWeights:
    @pytest.mark.slow
    def test_as_they_are_and_in_wrappers(self, run, calm, root):
        model = calm(apis.build_model(apis.load_config(root / CONFIG)))
        state = model.state_dict()
        run(dict(state_dict=state))
        run({f'module.{key}': value for key, value in state.items()})

    @pytest.mark.slow
    def test_allow_partial(self, run, calm, root):
        model = calm(apis.build_model(apis.load_config(root / CONFIG)))
        state = dict(model.state_dict(), extra=torch.ones(1))
        run(dict(state_dict=state), '--allow-partial')
