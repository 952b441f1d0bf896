"""Ops of mmcv that torchvision computes where mmcv has none that are compiled."""

import importlib
import sys

import mmcv.ops
import numpy as np
import pytest
import torch

from mdeq_mm.compat import torchvision_ops
from mdeq_mm.compat.installation import MissingOps

pytestmark = pytest.mark.versions
COMPILED = importlib.import_module('mmcv._ext')
ALIGN = dict(
    aligned_height=3,
    aligned_width=2,
    spatial_scale=0.5,
    sampling_ratio=0,
    pool_mode=1,
    aligned=True,
)


def random_boxes(n, size=60.0):
    corners = torch.rand(n, 2) * size
    return torch.cat([corners, corners + torch.rand(n, 2) * size / 2], dim=1)


def random_regions(n, n_images=2):
    images = torch.randint(n_images, (n, 1)).float()
    return torch.cat([images, random_boxes(n, size=20.0)], dim=1)


def plain_nms(boxes, scores, threshold, offset):
    """The definition, box by box."""
    kept = []
    for index in np.argsort(-scores, kind='stable'):
        x1, y1, x2, y2 = boxes[index]
        for other in kept:
            a1, b1, a2, b2 = boxes[other]
            width = max(0, min(x2, a2) - max(x1, a1) + offset)
            height = max(0, min(y2, b2) - max(y1, b1) + offset)
            areas = [
                (c2 - c1 + offset) * (d2 - d1 + offset)
                for c1, d1, c2, d2 in (boxes[index], boxes[other])
            ]
            if width * height > threshold * (sum(areas) - width * height):
                break
        else:
            kept.append(index)
    return kept


def align(op, features, regions, **settings):
    settings = dict(ALIGN, **settings)
    size = (settings['aligned_height'], settings['aligned_width'])
    output = features.new_zeros(len(regions), features.shape[1], *size)
    empty = features.new_zeros(0)
    op(features, regions, output, empty, empty, **settings)
    return output


def align_backward(op, grad_output, regions, shape, **settings):
    grad_input = grad_output.new_zeros(shape)
    empty = grad_output.new_zeros(0)
    op(grad_output, regions, empty, empty, grad_input, **dict(ALIGN, **settings))
    return grad_input


class TestNms:
    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
    def test_definition(self, threshold, offset):
        boxes, scores = random_boxes(200, size=10.0), torch.rand(200)
        kept = torchvision_ops.nms(boxes, scores, threshold, offset)
        plain = plain_nms(boxes.double().numpy(), scores.numpy(), threshold, offset)
        assert kept.tolist() == plain
        assert 1 < len(kept) < 200

    def test_offset_matters(self):
        boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]])
        scores = torch.tensor([0.5, 0.9])
        assert torchvision_ops.nms(boxes, scores, 0.3, 0).tolist() == [1, 0]
        assert torchvision_ops.nms(boxes, scores, 0.3, 1).tolist() == [1]
        assert boxes[1].tolist() == [1, 0, 2, 1]

    def test_no_boxes(self):
        kept = torchvision_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64

    def test_through_mmcv(self):
        boxes, scores = random_boxes(40), torch.rand(40)
        kept, indices = mmcv.ops.nms(boxes, scores, 0.4, score_threshold=0.2)
        assert torch.equal(kept, torch.cat([boxes, scores[:, None]], 1)[indices])
        assert kept[:, 4].min() > 0.2
        few, _ = mmcv.ops.nms(boxes, scores, 0.4, max_num=3)
        assert torch.equal(few, kept[:3])

    @pytest.mark.parametrize('split_thr', [10000, 1])
    def test_batched(self, split_thr):
        """Boxes of different classes do not touch, in one call or one per class."""
        boxes, scores = random_boxes(60), torch.rand(60)
        classes = torch.randint(3, (60,))
        cfg = dict(type='nms', iou_threshold=0.3, split_thr=split_thr)
        _, kept = mmcv.ops.batched_nms(boxes, scores, classes, cfg)
        expected = set()
        for label in range(3):
            (places,) = torch.where(classes == label)
            alone = plain_nms(
                boxes[places].double().numpy(), scores[places].numpy(), 0.3, 0
            )
            expected |= set(places[alone].tolist())
        assert set(kept.tolist()) == expected
        assert len(expected) < 60


class TestRoiAlign:
    @pytest.mark.parametrize('aligned', [True, False])
    def test_average_of_a_ramp(self, aligned):
        """Of a linear map it is the value in the middle of each bin."""
        ramp = torch.arange(32.0).repeat(32, 1)[None, None]
        regions = torch.tensor([[0.0, 8, 10, 28, 40]])
        output = align(
            torchvision_ops.roi_align_forward, ramp, regions, aligned=aligned
        )
        middles = torch.tensor([6.5, 11.5]) - (0.5 if aligned else 0)
        torch.testing.assert_close(output[0, 0], middles.expand(3, 2))

    @pytest.mark.parametrize('sampling_ratio', [0, 2])
    def test_gradient(self, sampling_ratio):
        features = torch.rand(2, 2, 12, 14, dtype=torch.float64, requires_grad=True)
        regions = random_regions(4).double()

        def function(features):
            settings = (0.5, sampling_ratio, 'avg', True)
            return mmcv.ops.roi_align(features, regions, (3, 2), *settings)

        assert torch.autograd.gradcheck(function, features)

    def test_no_regions(self):
        features = torch.rand(2, 3, 8, 8, requires_grad=True)
        output = mmcv.ops.roi_align(features, torch.zeros(0, 5), 7, 1.0, 0)
        assert output.shape == (0, 3, 7, 7)
        output.sum().backward()
        assert not features.grad.any()

    def test_the_maximum_is_refused(self):
        with pytest.raises(ImportError, match=r"roi_align_forward.* pool_mode='max'"):
            align(
                torchvision_ops.roi_align_forward,
                torch.rand(1, 1, 8, 8),
                random_regions(1, n_images=1),
                pool_mode=0,
            )


class TestStandIn:
    @pytest.mark.parametrize('name', torchvision_ops.OPS)
    def test_is_torchvisions(self, name):
        ops = MissingOps('mmcv._ext')
        assert getattr(ops, name) is getattr(torchvision_ops, name)

    @pytest.mark.parametrize('name', torchvision_ops.OPS)
    def test_without_torchvision(self, monkeypatch, name):
        """The error says what to install."""
        monkeypatch.setitem(sys.modules, 'torchvision', None)
        boxes = random_boxes(3)
        calls = dict(
            nms=lambda op: op(boxes, torch.rand(3), 0.5, 0),
            roi_align_forward=lambda op: align(
                op, torch.rand(2, 1, 8, 8), random_regions(2)
            ),
            roi_align_backward=lambda op: align_backward(
                op, torch.rand(2, 1, 3, 2), random_regions(2), (2, 1, 8, 8)
            ),
        )
        with pytest.raises(ImportError, match=f"'{name}' .*: install torchvision"):
            calls[name](torchvision_ops.OPS[name])

    def test_roi_pool_is_refused(self):
        """The one of torchvision has other values."""
        with pytest.raises(ImportError, match=r"'roi_pool_forward' .* install mmcv"):
            MissingOps('mmcv._ext').roi_pool_forward()


@pytest.mark.skipif(
    isinstance(COMPILED, MissingOps), reason='mmcv has no compiled ops here'
)
class TestCompiled:
    """The values are those of the compiled ops."""

    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
    def test_nms(self, threshold, offset):
        boxes, scores = random_boxes(300), torch.rand(300)
        arguments = dict(iou_threshold=threshold, offset=offset)
        kept = torchvision_ops.nms(boxes, scores, **arguments)
        assert torch.equal(kept, COMPILED.nms(boxes, scores, **arguments))

    @pytest.mark.parametrize('aligned', [True, False])
    @pytest.mark.parametrize('sampling_ratio', [0, 2])
    def test_roi_align(self, sampling_ratio, aligned):
        settings = dict(sampling_ratio=sampling_ratio, aligned=aligned)
        features, regions = torch.randn(2, 4, 16, 20), random_regions(30)
        grads = torch.randn(30, 4, 3, 2)
        results = [
            (
                align(ops.roi_align_forward, features, regions, **settings),
                align_backward(
                    ops.roi_align_backward, grads, regions, features.shape, **settings
                ),
            )
            for ops in (torchvision_ops, COMPILED)
        ]
        for own, compiled in zip(*results):
            torch.testing.assert_close(own, compiled)
