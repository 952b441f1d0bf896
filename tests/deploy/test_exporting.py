"""Files that run without this package, and their comparison with PyTorch."""

import importlib.util

import pytest
import torch
from mmengine.utils import digit_version

from mdeq_mm.apis import single_layer
from mdeq_mm.deploy import (
    DeployedNetwork,
    check_requirements,
    export,
    exporting,
    fixed_mode,
    relative_difference,
)

from .exporters import stand_in

needs_torch = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version(exporting.MIN_TORCH),
    reason=f'export needs torch {exporting.MIN_TORCH}',
)


@pytest.fixture
def make_network(make_model):
    """Makes the network of a small model, at three evaluations."""

    def make(kind, solver='anderson', **options):
        model = make_model(kind, **options)
        mode = fixed_mode(single_layer(model), solver, 3)
        return DeployedNetwork(model, mode)

    return make


class TestComparison:
    @pytest.mark.parametrize(
        ('dynamic', 'second'),
        [
            ((), None),
            (('batch',), (3, 3, 12, 16)),
            (('size',), (2, 3, 15, 21)),
            (('batch', 'size'), (3, 3, 15, 21)),
        ],
    )
    def test_shapes(self, make_network, tmp_path, monkeypatch, dynamic, second):
        stand_in(monkeypatch)
        network = make_network('segmentor')
        path = tmp_path / 'new/model.onnx'
        checks = export(network, path, network.example(2, 12, 16), dynamic=dynamic)
        shapes = [(2, 3, 12, 16)] if second is None else [(2, 3, 12, 16), second]
        assert [check.shape for check in checks] == shapes
        assert all(check.difference == 0 for check in checks)
        assert all(min(check.seconds, check.torch_seconds) > 0 for check in checks)
        assert [file.name for file in path.parent.iterdir()] == ['model.onnx']

    def test_head_that_fixes_the_size(self, make_model, tmp_path, monkeypatch):
        stand_in(monkeypatch)
        model = make_model('segmentor')
        model.decode_head.align_corners = True
        network = DeployedNetwork(model, fixed_mode(single_layer(model), evals=2))
        path, images = tmp_path / 'model.onnx', network.example(2, 12, 16)
        with pytest.raises(ValueError, match=r'align_corners=True, got .*size'):
            export(network, path, images, dynamic=['size'])
        checks = export(network, path, images)
        assert [check.shape for check in checks] == [(2, 3, 12, 16), (3, 3, 12, 16)]

    @pytest.mark.parametrize('factor', [1.001, float('nan')])
    def test_nothing_is_left_of_a_wrong_file(
        self, make_network, tmp_path, monkeypatch, factor
    ):
        stand_in(monkeypatch, factor)
        network = make_network('classifier')
        path, images = tmp_path / 'model.onnx', network.example(2, 12, 16)
        with pytest.raises(RuntimeError, match='differs from PyTorch by .*not written'):
            export(network, path, images)
        assert list(tmp_path.iterdir()) == []

    def test_file_before_outlives_a_wrong_one(
        self, make_network, tmp_path, monkeypatch
    ):
        stand_in(monkeypatch, 2.0)
        network = make_network('classifier')
        path, images = tmp_path / 'model.onnx', network.example(2, 12, 16)
        path.write_text('before')
        with pytest.raises(RuntimeError, match='differs from PyTorch by 1.0e'):
            export(network, path, images)
        export(network, path, images, tolerance=1.1)
        assert path.read_text() == 'onnx'

    def test_difference_is_relative(self):
        expected = torch.tensor([[0.0, -20.0, 10.0]])
        assert relative_difference(expected + 1, expected) == pytest.approx(0.05)
        zero = torch.zeros(1, 3)
        assert relative_difference(zero, zero) == 0
        assert relative_difference(zero + 1, zero) > 1

    def test_nan(self, make_network, tmp_path, monkeypatch):
        stand_in(monkeypatch)
        network = make_network('classifier')
        network.model.head.fc.bias.fill_(torch.nan)
        with pytest.raises(ValueError, match='must have finite logits'):
            export(network, tmp_path / 'new/model.onnx', network.example(1, 12, 16))
        assert not (tmp_path / 'new').exists()


class TestRequirements:
    def test_format(self):
        with pytest.raises(ValueError, match="file_format must be one of .*got 'pth'"):
            check_requirements('pth')

    @needs_torch
    def test_missing_package(self, monkeypatch):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            'find_spec',
            lambda name: None if name.startswith('onnx') else found(name),
        )
        with pytest.raises(
            ImportError, match=r'onnx, onnxscript, onnxruntime .*deploy'
        ):
            check_requirements('onnx')
        check_requirements('torch')

    def test_old_torch(self, monkeypatch):
        monkeypatch.setattr(torch, '__version__', '2.1.2+cpu')
        with pytest.raises(
            RuntimeError, match='needs torch 2.6 .* this is torch 2.1.2'
        ):
            check_requirements('torch')

    @needs_torch
    def test_dynamic(self, make_network, tmp_path):
        network = make_network('classifier')
        with pytest.raises(ValueError, match="dynamic must be one of .*got 'height'"):
            export(
                network,
                tmp_path / 'model.pt2',
                network.example(1, 12, 16),
                'torch',
                dynamic=['height'],
            )


@needs_torch
class TestRealFiles:
    def files_agree(self, network, path, file_format, dynamic=None):
        images = network.example(1, 20, 28)
        checks = export(network, path, images, file_format, dynamic)
        assert [check.shape[0] for check in checks] == [1, 2][: len(checks)]
        function = exporting.load(path, file_format)
        if dynamic is None:
            odd = network.example(3, 33, 47)
            assert relative_difference(function(odd), network(odd)) < 1e-4
        return function

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ('kind', 'solver'), [('segmentor', 'anderson'), ('classifier', 'picard')]
    )
    def test_onnx(self, make_network, tmp_path, kind, solver):
        pytest.importorskip('onnxruntime')
        network = make_network(kind, solver)
        path = tmp_path / 'model.onnx'
        self.files_agree(network, path, 'onnx')
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.slow
    def test_onnx_of_one_shape(self, make_network, tmp_path):
        pytest.importorskip('onnxruntime')
        network = make_network('segmentor')
        run = self.files_agree(network, tmp_path / 'model.onnx', 'onnx', dynamic=())
        with pytest.raises(Exception, match='images'):
            run(network.example(1, 33, 47))

    @pytest.mark.slow
    def test_torch(self, make_network, tmp_path):
        self.files_agree(make_network('segmentor'), tmp_path / 'model.pt2', 'torch')

    @pytest.mark.slow
    def test_learned_guess(self, make_network, tmp_path):
        guess = dict(type='ProjectedGuess')
        network = make_network('classifier', initial_guess=guess)
        path = tmp_path / 'model.pt2'
        self.files_agree(network, path, 'torch', dynamic=['batch'])

    def test_what_cannot_be_recorded(self, make_network, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise ValueError('a size is specialized')

        monkeypatch.setattr(torch.export, 'export', refuse)
        network = make_network('classifier')
        path, images = tmp_path / 'model.pt2', network.example(2, 12, 16)
        with pytest.raises(RuntimeError, match='torch.export cannot record the model'):
            export(network, path, images, 'torch')
        assert list(tmp_path.iterdir()) == []


@needs_torch
class TestOrdinaryModels:
    """A solve is not recorded, by whatever exporter: each error names the tool."""

    MESSAGE = 'Export .* by tools/deployment/export.py'

    @pytest.fixture
    def model(self, make_model):
        return make_model('segmentor')

    @pytest.fixture
    def images(self):
        return torch.rand(1, 3, 16, 16)

    @pytest.mark.filterwarnings('ignore')
    def test_trace(self, model, images):
        with torch.no_grad(), pytest.raises(RuntimeError, match=self.MESSAGE):
            torch.jit.trace(model, images)

    @pytest.mark.filterwarnings('ignore')
    def test_older_onnx_exporter(self, model, images, tmp_path):
        pytest.importorskip('onnx')
        path = tmp_path / 'model.onnx'
        with pytest.raises(RuntimeError, match=self.MESSAGE):
            torch.onnx.export(model, (images,), str(path), dynamo=False)
        assert not path.exists()

    def test_torch_export(self, model, images):
        model.requires_grad_(False)
        with pytest.raises(RuntimeError, match=self.MESSAGE):
            torch.export.export(model, (images,), strict=False)
