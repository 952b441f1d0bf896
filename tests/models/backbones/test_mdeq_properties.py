"""What holds for the backbone, of images of any size and in any place."""

import pytest
import torch
from hypothesis import strategies as st

from mdeq_mm.models import MDEQ

from ...properties import BATCH_SIZES, SEEDS, STRIDES, generator_of, holds, restride


@pytest.fixture(scope='module', params=[0, 2], ids='{} halvings'.format)
def model(request):
    torch.manual_seed(0)
    arch = dict(channels=(4, 8), num_groups=2, expansion=1)
    # The plain iteration makes of a rounding what the cell makes of it, no more.
    solver = dict(type='PicardSolver', max_evals=4, tol=0.0)
    settings = dict(downsample_times=request.param, forward_solver=solver)
    return MDEQ(arch, **settings).double().eval()


def make_images(model, batch_size, height, width, seed):
    """Images that are larger than the smallest ones by some pixels."""
    smallest = model.coarsest_stride // 2 + 1
    shape = batch_size, 3, smallest + height, smallest + width
    return torch.randn(shape, generator=generator_of(seed), dtype=torch.float64)


IMAGES = dict(
    batch_size=BATCH_SIZES,
    height=st.integers(0, 9),
    width=st.integers(0, 9),
    seed=SEEDS,
)


@holds(
    15,
    **IMAGES,
    strides=st.one_of(STRIDES, st.just('channels last')),
    expanded=st.booleans(),
)
@torch.no_grad()
def test_any_size_and_strides(
    model, batch_size, height, width, seed, strides, expanded
):
    """Odd sizes round up, and where the numbers lie changes the last bits alone."""
    images = make_images(model, batch_size, height, width, seed)
    given = restride(images, strides)
    if expanded:
        given = make_images(model, 1, height, width, seed).expand_as(images)
        images = given.contiguous()
    outputs = model(given)
    height, width = images.shape[2:]
    stride = model.coarsest_stride // 2
    for x, y, channels in zip(outputs, model(images), model.channels):
        assert x.shape == (
            batch_size,
            channels,
            -(-height // stride),
            -(-width // stride),
        )
        assert x.dtype == images.dtype
        assert x.is_contiguous()
        assert x.isfinite().all()
        torch.testing.assert_close(x, y, rtol=0, atol=1e-7)
        stride *= 2


@holds(12, **IMAGES, data=st.data())
@torch.no_grad()
def test_samples_do_not_mix(model, batch_size, height, width, seed, data):
    """Half of the images, in any order, come out as they do in the whole batch."""
    images = make_images(model, batch_size, height, width, seed)
    order = data.draw(st.permutations(range(batch_size)))
    rows = torch.tensor(order[: (batch_size + 1) // 2], dtype=torch.int64)
    for x, y in zip(model(images[rows]), model(images)):
        torch.testing.assert_close(x, y[rows], rtol=0, atol=1e-7)


@holds(12, **IMAGES)
def test_gradients(model, batch_size, height, width, seed):
    """They are finite, of an empty batch zero, and change no image."""
    images = make_images(model, batch_size, height, width, seed).requires_grad_()
    before = images.detach().clone()
    model.zero_grad()
    sum(x.square().sum() for x in model(images)).backward()
    assert torch.equal(images, before)
    assert images.grad.shape == images.shape
    assert images.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert batch_size or not parameter.grad.any()
