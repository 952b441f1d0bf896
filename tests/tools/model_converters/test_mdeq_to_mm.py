"""The converter of official checkpoints, by its command line."""

import contextlib
import io
import random
import subprocess
import sys
import zipfile

import mmpretrain.models  # noqa: F401  once, and not in each forked process
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from mdeq_mm import __version__, apis
from mdeq_mm.apis import build_model
from mdeq_mm.checkpoints import convert_official_state_dict, reading
from mdeq_mm.deq import BroydenSolver
from mdeq_mm.models import MDEQ

from ...limited import limited


@pytest.fixture(scope='session')
def tool(load_tool):
    return load_tool('model_converters/mdeq_to_mm.py')


@pytest.fixture
def official(golden):
    """State dict as the release of 2021 saves it."""
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in golden.state.items()
    }


def training_checkpoint(state):
    parameter = torch.nn.Parameter(torch.rand(3))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.grad = torch.rand(3)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, 1e-6)
    return dict(
        epoch=3,
        model='cls_mdeq',
        state_dict=state,
        perf=75.5,
        optimizer=optimizer.state_dict(),
        lr_scheduler=scheduler.state_dict(),
        train_global_steps=100,
    )


def with_loss(state):
    wrapped = {f'model.{key}': tensor for key, tensor in state.items()}
    return {**wrapped, 'loss.criterion.weight': torch.rand(19)}


def parallel(state):
    return {f'module.{key}': tensor for key, tensor in state.items()}


def release_2020(state):
    """With the copies of the cell; the frozen ones have plain weights."""
    same, frozen = {}, {}
    for key, tensor in state.items():
        if not key.startswith('fullstage.'):
            continue
        name = key[len('fullstage.') :]
        same[name] = tensor
        if name.endswith('weight_v'):
            g = state[key[:-1] + 'g']
            norm = tensor.flatten(1).norm(dim=1).view_as(g)
            frozen[name[: -len('_v')]] = g * tensor / norm
        elif not name.endswith('weight_g'):
            frozen[name] = tensor
    return {
        **state,
        **{f'fullstage_copy.{name}': tensor for name, tensor in frozen.items()},
        **{f'deq.func.{name}': tensor for name, tensor in same.items()},
        **{f'deq.func_copy.{name}': tensor for name, tensor in frozen.items()},
    }


def in_float16(state):
    return {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


VARIANTS = {
    'plain': lambda state: state,
    'training checkpoint': training_checkpoint,
    'parallel': parallel,
    'with loss': with_loss,
    'training checkpoint with loss': lambda s: training_checkpoint(with_loss(s)),
    'parallel with loss': lambda s: parallel(with_loss(s)),
    '2020': release_2020,
    '2020, training checkpoint': lambda s: training_checkpoint(release_2020(s)),
    '2020 with loss': lambda s: with_loss(release_2020(s)),
    'float16': in_float16,
}


def printed_config(output):
    """The config that ``--inspect`` prints behind the facts."""
    return Config.fromstring(output.split('\n\n', 1)[1], '.py')


def check_logits(golden, cfg, path):
    """A stock model with the converted checkpoint has the reference's logits."""
    model = build_model(cfg)
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    model = model.double().eval()
    solver = BroydenSolver(max_evals=200, tol=1e-14, memory=60)
    head = model.head if golden.task == 'classification' else model.decode_head
    with torch.no_grad(), model.backbone.equilibrium.using(solver=solver):
        logits = head(model.extract_feat(golden.ref['input/x']))
    # The weights are exact in float32; so is what the head's norm takes in.
    torch.testing.assert_close(logits, golden.ref['eq/logits'], rtol=0, atol=1e-9)


class TestConvert:
    # float16 alone changes values; the others must give the same tensors.
    @pytest.mark.parametrize('variant', ['plain', 'float16'])
    @pytest.mark.slow
    @pytest.mark.versions
    def test_logits(self, golden, official, tool, tmp_path, capsys, variant):
        src, dst = tmp_path / 'official.pkl', tmp_path / 'new' / 'converted.pth'
        torch.save(VARIANTS[variant](official), src)
        assert tool.main([str(src), '--inspect']) == 0
        assert [path.name for path in tmp_path.iterdir()] == ['official.pkl']
        cfg = printed_config(capsys.readouterr().out)
        assert tool.main([str(src), str(dst)]) == 0
        assert f'written: {dst}' in capsys.readouterr().out
        assert [path.name for path in dst.parent.iterdir()] == ['converted.pth']
        check_logits(golden, cfg, dst)

    @pytest.mark.slow
    @pytest.mark.versions
    def test_variants(self, golden, official, tool, tmp_path):
        converted = {}
        for variant in VARIANTS.keys() - {'float16'}:
            src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
            zipped = variant != 'plain'  # the oldest files are in the older format
            content = VARIANTS[variant](official)
            torch.save(content, src, _use_new_zipfile_serialization=zipped)
            assert tool.main([str(src), str(dst)]) == 0
            converted[variant] = torch.load(dst, weights_only=True)['state_dict']
        expected = converted['plain']
        for variant, found in converted.items():
            assert found.keys() == expected.keys(), variant
            for key, tensor in found.items():
                assert torch.equal(tensor, expected[key]), (variant, key)

    def test_meta(self, golden, official, tool, tmp_path, capsys):
        src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
        torch.save(release_2020(official), src)
        assert tool.main([str(src), str(dst)]) == 0
        printed = capsys.readouterr().out
        converted = torch.load(dst, weights_only=True)
        assert set(converted) == {'meta', 'state_dict'}
        meta = converted['meta']
        digest = meta.pop('source_sha256')
        assert len(digest) == 64
        assert f'sha256: {digest}' in printed
        channels = tuple(golden.config['num_channels'])
        assert meta == dict(
            mdeq_mm_version=__version__,
            task=golden.task,
            arch='tiny' if golden.name == 'tiny2' else dict(channels=channels),
            num_classes=golden.config['num_classes'],
            source='official.pkl',
            source_release='2020',
        )
        floating = [
            v for v in converted['state_dict'].values() if v.is_floating_point()
        ]
        assert {tensor.dtype for tensor in floating} == {torch.float32}

    def test_backbone_starts_from_it(self, golden, official, tool, tmp_path):
        src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
        torch.save(official, src)
        assert tool.main([str(src), str(dst)]) == 0
        arch = torch.load(dst, weights_only=True)['meta']['arch']
        init_cfg = dict(type='Pretrained', prefix='backbone.', checkpoint=str(dst))
        backbone = MDEQ(arch=arch, init_cfg=init_cfg)
        backbone.init_weights()
        converted = torch.load(dst, weights_only=True)['state_dict']
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, converted[f'backbone.{name}']), name

    def test_config(self, golden, official, tool, root, tmp_path, capsys):
        """With a config, its model is the one that has to fit."""
        src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
        torch.save(official, src)
        config = root / 'configs/classification/mdeq-tiny_2xb64_cifar10.py'
        code = tool.main([str(src), str(dst), '--config', str(config)])
        message = capsys.readouterr().err
        if golden.name == 'tiny2':
            assert code == 0
            check_logits(golden, Config.fromfile(config), dst)
        else:
            assert code == 1
            assert 'tensors do not fit the model' in message
            key = 'fullstage.branches.0.blocks.0.conv1.weight_v'
            assert f'misshapen: {key} is (40, 8, 3, 3), not (120, 24, 3, 3)' in message
            assert not dst.exists()


class TestImageNetSmall:
    @pytest.mark.parametrize('release', ['2020', '2021'])
    def test_published_keys(self, shared, tool, tmp_path, capsys, release):
        table = shared / 'golden' / f'keys_imagenet_small_{release}.txt'
        state = {}
        for line in table.read_text().splitlines():
            if line.startswith(('#', 'key\t')):
                continue
            key, shape, dtype, _ = line.split('\t')
            shape = [int(size) for size in shape.strip('()').split(',') if size]
            if key.startswith('deq.func.'):
                state[key] = state[key.replace('deq.func.', 'fullstage.')]
            elif dtype == 'int64':
                state[key] = torch.tensor(1)
            else:
                state[key] = torch.rand(shape)
        assert len(state) == {'2020': 512, '2021': 224}[release]
        src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
        torch.save(state, src)
        assert tool.main([str(src), str(dst)]) == 0
        printed = capsys.readouterr().out
        for fact in (
            f'release: {release}',
            'task: classification',
            'arch: small',
            'classes: 1000',
            'parameters: 16,808,936',
            'head: head_channels=(24, 48, 96, 192), out_channels=2048',
        ):
            assert f'{fact}\n' in printed
        assert 'strides are not told' not in printed
        for prefix, n_keys in (
            ('fullstage_copy', 92),
            ('deq.func', 104),
            ('deq.func_copy', 92),
        ):
            dropped = f'dropped {prefix}.*: {n_keys} keys\n'
            assert (dropped in printed) == (release == '2020')
        backbone = MDEQ('small')
        load_checkpoint(backbone, str(dst), revise_keys=[(r'^backbone\.', '')])
        weight = backbone.equilibrium.cell.branches[3][0].conv1.weight
        prefix = 'fullstage.branches.3.blocks.0.conv1.weight'
        expected = torch._weight_norm(state[f'{prefix}_v'], state[f'{prefix}_g'])
        torch.testing.assert_close(weight, expected)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.fixture
def state(shared):
    arrays = np.load(shared / 'golden' / 'tiny2.state.npz', allow_pickle=False)
    return {
        key: torch.from_numpy(arrays[key].astype('float32'))
        if arrays[key].dtype == np.float16
        else torch.from_numpy(arrays[key])
        for key in arrays
    }


@pytest.fixture
def refuse(tool, tmp_path, capsys):
    """Converts what must fail; nothing may be left. Returns the message."""

    def run_tool(content, *args):
        src = tmp_path / 'official.pkl'
        if isinstance(content, bytes):
            src.write_bytes(content)
        else:
            torch.save(content, src)
        before = sorted(tmp_path.rglob('*'))
        assert tool.main([str(src), str(tmp_path / 'out' / 'new.pth'), *args]) == 1
        assert sorted(tmp_path.rglob('*')) == before
        message = capsys.readouterr().err
        assert message.startswith('error: ')
        return message

    return run_tool


class TestErrors:
    @pytest.mark.slow
    @pytest.mark.versions
    def test_code_in_a_pickle(self, root, state, tool, tmp_path, capsys):
        src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
        torch.save(dict(state_dict=state, perf=Trap(tmp_path / 'ran')), src)
        # In a process of its own, as users run it.
        command = [sys.executable, root / 'tools/model_converters/mdeq_to_mm.py']
        result = subprocess.run(
            [*command, src, dst], capture_output=True, text=True, check=False
        )
        assert (result.returncode, tool.main([str(src), '--inspect'])) == (1, 1)
        for message in (result.stderr, capsys.readouterr().err):
            assert f'error: {src} is refused and nothing in it was run' in message
            assert f'asks for {open.__module__}.open' in message
            assert 'Traceback' not in message
        assert [path.name for path in tmp_path.iterdir()] == ['official.pkl']

    def test_truncated(self, state, refuse, tmp_path):
        torch.save(state, tmp_path / 'whole.pkl')
        content = (tmp_path / 'whole.pkl').read_bytes()
        assert 'is truncated' in refuse(content[: len(content) // 2])

    def test_text(self, refuse):
        assert 'is not what torch.save writes' in refuse(b'some words\n')

    def test_foreign_model(self, refuse):
        message = refuse({'conv1.weight': torch.zeros(1), 'bn1.bias': torch.zeros(1)})
        assert 'not an official model' in message
        assert 'conv1.weight, bn1.bias' in message

    def test_converted_already(self, state, refuse, tool, tmp_path):
        src, dst = tmp_path / 'first.pkl', tmp_path / 'converted.pth'
        torch.save(state, src)
        assert tool.main([str(src), str(dst)]) == 0
        message = refuse(dst.read_bytes())
        assert 'has the names of the toolboxes already' in message

    def test_keys_that_do_not_fit(self, state, refuse):
        del state['classifier.bias']
        del state['fullstage.branches.1.blocks.0.conv1.weight_v']
        state['fullstage.branches.0.blocks.0.gn3.weight'] = torch.zeros(25)
        state['fullstage.oddity'] = torch.zeros(3)
        lines = refuse(state).splitlines()
        assert lines == [
            'error: 4 of 95 tensors do not fit the model:',
            '  missing: fullstage.branches.1.blocks.0.conv1.weight_v',
            '  missing: classifier.bias',
            '  too many: fullstage.oddity',
            '  misshapen: fullstage.branches.0.blocks.0.gn3.weight is (25,), not (24,)',
        ]

    def test_no_model_has_the_shapes(self, state, refuse):
        """Twelve channels do not split into eight groups."""
        halved = {
            key: tensor[: (len(tensor) + 1) // 2]
            if key.startswith('fullstage.')
            else tensor
            for key, tensor in state.items()
        }
        message = refuse(halved)
        assert 'the model could not be built (--config can name another one)' in message
        assert 'divisible by num_groups=8' in message

    def test_config_of_no_toolbox(self, state, refuse, tmp_path):
        config = tmp_path / 'config.py'
        config.write_text('model = dict()\n')
        message = refuse(state, '--config', str(config))
        assert 'default_scope' in message

    def test_toolbox_is_missing(self, state, refuse, monkeypatch):
        monkeypatch.setattr(apis, '_is_installed', lambda name: name == 'mmseg')
        message = refuse(state)
        assert 'the model could not be built (--config can name another' in message
        assert 'installed toolbox, such as mmseg,' in message
        assert "got 'mmpretrain'" in message

    def test_toolbox_cannot_be_imported(self, state, refuse, monkeypatch):
        def fail(name):
            raise ModuleNotFoundError("No module named 'ftfy'", name='ftfy')

        monkeypatch.setattr(apis, 'import_module', fail)
        assert "the model is one of mmpretrain: No module named 'ftfy'" in refuse(state)

    def test_target_is_a_directory(self, state, tool, tmp_path, capsys):
        src = tmp_path / 'official.pkl'
        torch.save(state, src)
        assert tool.main([str(src), str(tmp_path)]) == 1
        assert 'DST must be a file' in capsys.readouterr().err

    def test_target_is_the_source(self, state, tool, tmp_path, capsys):
        src = tmp_path / 'official.pkl'
        torch.save(state, src)
        before = src.read_bytes()
        assert tool.main([str(src), str(tmp_path / '.' / 'official.pkl')]) == 1
        assert 'SRC and DST are the same file' in capsys.readouterr().err
        assert src.read_bytes() == before

    @pytest.mark.parametrize('error', [OSError, RuntimeError])
    def test_disk_is_full(self, state, tool, tmp_path, capsys, monkeypatch, error):
        src, dst = tmp_path / 'official.pkl', tmp_path / 'converted.pth'
        torch.save(state, src)
        dst.write_bytes(b'an older one')

        def save(checkpoint, file):
            file.write(b'some of it')
            raise error('no space left')

        monkeypatch.setattr(tool.torch, 'save', save)
        assert tool.main([str(src), str(dst)]) == 1
        assert 'no space left' in capsys.readouterr().err
        assert dst.read_bytes() == b'an older one'
        assert {path.name for path in tmp_path.iterdir()} == {src.name, dst.name}

    @pytest.mark.parametrize('args', [[], ['new.pth', '--inspect']])
    def test_either_target_or_inspect(self, tool, capsys, args):
        with pytest.raises(SystemExit, match='2'):
            tool.main(['official.pkl', *args])
        assert 'give either DST or --inspect' in capsys.readouterr().err


FIRST = 'fullstage.branches.0.blocks.0.gn1.weight'
GIGA = 1_000_000_000


class TestHostile:
    """One clear message, little memory, and nothing is left behind."""

    @pytest.fixture
    def refuse_limited(self, tool, tmp_path, capfd):
        def run(content, **kwargs):
            src, dst = tmp_path / 'official.pkl', tmp_path / 'out' / 'new.pth'
            torch.save(content, src, **kwargs)
            before = sorted(tmp_path.rglob('*'))
            code = limited(tool.main, [str(src), str(dst)])
            assert code == 1, repr(code)
            assert sorted(tmp_path.rglob('*')) == before
            message = capfd.readouterr().err
            assert message.startswith('error: ')
            assert 'Traceback' not in message
            assert message.replace('\n', '').isprintable()
            assert len(message) < 20_000
            return message

        return run

    @pytest.mark.parametrize(
        'key',
        [
            f'fullstage.branches.{GIGA}.blocks.0.gn1.weight',
            f'fullstage.branches.{"9" * 5000}.x',
            'fullstage.branches.0.blocks.1000000.gn1.weight',
            'fullstage.branches.²³.x',
            'downsample.3000000.weight',
            'downsample.48.weight',
            'fullstage.branches.01.blocks.0.gn1.weight',
            'fullstage.oddity\x1b[2J\rerror: none\n',
            'fullstage.\u202eoddity\ud800',
        ],
    )
    def test_name(self, state, refuse_limited, key):
        message = refuse_limited({**state, key: torch.zeros(3)})
        assert message.startswith('error: 1 of 95 tensors do not fit the model:\n')
        assert 'too many: ' in message

    @pytest.mark.parametrize(
        ('names', 'message'),
        [
            (
                [f'fullstage.branches.{i}.blocks.0.gn1.weight' for i in range(2, 999)],
                'fullstage.branches.* counts to 999, at most 16 are allowed',
            ),
            (
                [f'fullstage.branches.0.blocks.{i}.gn1.weight' for i in range(1, 999)],
                'blocks.* counts to 999, at most 64 are allowed',
            ),
            (
                ['stage0.0.weight', *(f'downsample.{i}.weight' for i in range(999))],
                'downsample.* counts to 333, at most 16 are allowed',
            ),
            ([f'oddity.{i}' for i in range(60)], 'too many: 10 more'),
        ],
    )
    def test_many_names(self, state, refuse_limited, names, message):
        added = {name: torch.zeros(3) for name in names}
        assert message in refuse_limited({**state, **added})

    def test_more_tensors_than_any_model(self, state, refuse_limited, monkeypatch):
        monkeypatch.setattr(reading, '_MAX_TENSORS', 99)
        added = {f'oddity.{i}': torch.zeros(3) for i in range(6)}
        assert 'it has 100 tensors, at most 99 are' in refuse_limited(
            {**state, **added}
        )

    @pytest.mark.filterwarnings('ignore')
    @pytest.mark.parametrize(
        ('tensor', 'message'),
        [
            (torch.zeros(1).expand(10**11), 'asks for more numbers than 4 bytes'),
            (torch.zeros(1).half().expand(10**11), 'asks for more numbers than 2'),
            (torch.zeros(40) > 0, f'{FIRST} (torch.bool)'),
            (torch.zeros(40, dtype=torch.int32), f'{FIRST} (torch.int32)'),
            (torch.zeros(40, dtype=torch.complex64), f'{FIRST} (torch.complex64)'),
            (torch.zeros(40, dtype=torch.int64), f'{FIRST} is torch.int64, not '),
            (torch.quantize_per_tensor(torch.zeros(40), 1, 0, torch.qint8), 'asks for'),
            (torch.zeros(40, device='meta'), 'asks for torch._utils._rebuild_meta'),
            (torch.zeros(40).to_sparse(), 'asks for torch._utils._rebuild_sparse'),
            (torch.full((40,), torch.nan), f'not finite in float32, in {FIRST}'),
            (torch.full((40,), torch.inf), f'not finite in float32, in {FIRST}'),
            (
                torch.full((40,), 1e300, dtype=torch.float64),
                f'not finite in float32, in {FIRST}',
            ),
        ],
    )
    def test_tensor(self, state, refuse_limited, tensor, message):
        assert message in refuse_limited({**state, FIRST: tensor})

    def test_shared_memory(self, state, refuse_limited):
        """A file of a few bytes for many tensors."""
        largest = max(state.values(), key=torch.numel)
        shared = {
            key: largest.flatten()[: tensor.numel()].view(tensor.shape)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in state.items()
        }
        assert 'several share memory' in refuse_limited(shared)

    def test_counter_that_is_no_integer(self, state, refuse_limited):
        key = next(key for key in state if key.endswith('num_batches_tracked'))
        message = refuse_limited({**state, key: torch.tensor(1.0)})
        assert f'wrong type: {key} is torch.float32, not torch.int64' in message


class Mutants:
    """Damaged copies of a checkpoint, each with the values it may convert to."""

    def __init__(self, state, path):
        self.state = state
        self.draw = random.Random(0)
        torch.save(state, path)
        self.zipped = path.read_bytes()
        with zipfile.ZipFile(path) as file:
            self.records = {name: file.read(name) for name in file.namelist()}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        self.older = path.read_bytes()
        # The numbers stand at its end, and have no checksum.
        n_bytes = sum(8 + t.numel() * t.element_size() for t in state.values())
        self.n_checked = len(self.older) - n_bytes

    def all(self):
        for _ in range(110):
            yield self.flipped(self.zipped, len(self.zipped)), self.state
        for _ in range(40):
            yield self.flipped(self.older, self.n_checked), self.state
        for content in (self.zipped, self.older):
            for _ in range(25):
                yield content[: self.draw.randrange(len(content))], self.state
        for _ in range(30):
            yield self.moved(self.zipped), self.state
        for _ in range(50):
            yield self.with_flipped_pickle(), self.state
        for _ in range(40):
            yield self.with_swapped_records()

    def flipped(self, content, end):
        changed = bytearray(content)
        for _ in range(self.draw.choice((1, 1, 2, 20))):
            changed[self.draw.randrange(end)] ^= 1 << self.draw.randrange(8)
        return bytes(changed)

    def moved(self, content):
        """A few bytes are missing, twice there, or elsewhere."""
        first, second, third = sorted(self.draw.sample(range(len(content)), 3))
        parts = content[:first], content[first:second], content[second:third]
        kind = self.draw.choice(((0, 2), (0, 1, 1, 2), (0, 2, 1)))
        return b''.join(parts[i] for i in kind) + content[third:]

    def with_flipped_pickle(self):
        records = dict(self.records)
        name = next(name for name in records if name.endswith('/data.pkl'))
        content = bytearray(records[name])
        content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        return self.written({**records, name: bytes(content)})

    def with_swapped_records(self):
        """Two tensors have the numbers of each other, if both have as many."""
        root = next(iter(self.records)).split('/')[0]
        tensors = list(self.state.items())
        while True:
            (i, (a, first)), (j, (b, second)) = self.draw.sample(
                list(enumerate(tensors)), 2
            )
            if first.dtype == second.dtype:
                break
        names = f'{root}/data/{i}', f'{root}/data/{j}'
        records = dict(zip(names, (self.records[name] for name in names[::-1])))
        content = self.written({**self.records, **records})
        if first.numel() != second.numel():
            return content, None
        swapped = {a: second.view(first.shape), b: first.view(second.shape)}
        return content, {**self.state, **swapped}

    @staticmethod
    def written(records):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, 'w') as file:
            for name, content in records.items():
                file.writestr(name, content)
        return buffer.getvalue()


def what_became(tool, mutants, folder):
    """Converts mutants; returns how many came through, and what went wrong."""
    src, dst = folder / 'mutant.pkl', folder / 'converted.pth'
    n_converted, faults = 0, []
    for number, (content, state) in enumerate(mutants):
        src.write_bytes(content)
        dst.unlink(missing_ok=True)
        output = io.StringIO()
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            code = tool.main([str(src), str(dst)])
        message = output.getvalue()
        if code == 0:
            n_converted += 1
            found = torch.load(dst, weights_only=True)['state_dict']
            expected = {} if state is None else convert_official_state_dict(state)
            if found.keys() != expected.keys() or not all(
                torch.equal(found[key], expected[key]) for key in expected
            ):
                faults.append(f'{number}: other values')
        elif message.count('error: ') != 1 or dst.exists():
            faults.append(f'{number}: {message}')
    return n_converted, faults


@pytest.mark.slow
def test_mutants(state, tool, tmp_path):
    mutants = list(Mutants(state, tmp_path / 'whole.pkl').all())
    assert len(mutants) > 300
    n_converted, faults = limited(what_became, tool, mutants, tmp_path, seconds=500)
    assert faults == []
    # Some change nothing that counts, and some swap tensors of one size.
    assert 5 < n_converted < 100
