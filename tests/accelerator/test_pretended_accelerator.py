"""The pretended accelerator does what a real one does."""

import copy
import threading

import pytest
import torch
from torch import nn

from ..pretended_accelerator import NAME, reads_back

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures('pretended')]


@pytest.fixture
def x():
    return torch.tensor([1.0, -2.0, 3.0], device=NAME)


class TestReads:
    @pytest.mark.parametrize(
        'read',
        [
            lambda x: x.sum().item(),
            lambda x: x.tolist(),
            lambda x: x.cpu(),
            lambda x: x.to('cpu', torch.float64),
            lambda x: torch.empty(3).copy_(x),
            lambda x: bool((x > 0).any()),
            lambda x: float(x[0]),
            lambda x: x.nonzero(),
            lambda x: torch.where(x > 0),
            lambda x: x[x > 0],
            lambda x: x.masked_select(x > 0),
            lambda x: x.index_put((x > 0,), x[0]),
            lambda x: torch.equal(x, x),
            lambda x: torch.allclose(x, x),
            lambda x: x.unique(),
            lambda x: x.repeat_interleave((x > 0).long()),
        ],
    )
    def test_each_counts(self, x, read):
        with reads_back() as reads:
            read(x)
        assert len(reads) == 1
        assert reads[0].file == __file__

    @pytest.mark.parametrize(
        'work',
        [
            lambda x: x.mean() + 1,
            lambda x: torch.where(x > 0, x, 0),
            lambda x: x.masked_fill(x > 0, torch.inf),
            lambda x: x.argsort(stable=True),
            lambda x: x[x.argsort()],
            lambda x: x.double().half().isfinite().all(),
            lambda x: torch.zeros_like(x).copy_(torch.ones(3)),
            lambda x: torch.tensor([1.0], device=x.device),
            lambda x: torch.arange(3, device=x.device).to(x),
            lambda x: torch.rand(2, 3, device=x.device) @ x,
            lambda x: (len(x), x.shape, x.dtype, x.is_floating_point()),
            copy.deepcopy,
        ],
    )
    def test_work_on_the_device_does_not(self, x, work):
        with reads_back() as reads:
            work(x)
        assert reads == []

    def test_only_those_of_some_files(self, x):
        with reads_back('elsewhere') as reads:
            x.tolist()
        assert reads == []


class TestMixing:
    @pytest.mark.parametrize(
        'mix',
        [
            lambda x: x + torch.ones(3),
            lambda x: torch.ones(3).add_(x),
            lambda x: torch.cat([x, torch.ones(3)]),
            lambda x: torch.where(torch.tensor([True, False, True]), x, x),
            lambda x: x[torch.tensor([0, 1])],
            lambda x: torch.mul(x, 2, out=torch.empty(3)),
            nn.Linear(3, 2),
            lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
        ],
    )
    def test_refused(self, x, mix):
        with pytest.raises(RuntimeError, match='more than one device|generator of the'):
            mix(x)

    def test_numbers_may(self, x):
        assert (x + torch.tensor(2.0)).tolist() == [3, 0, 5]

    def test_arrays_are_not_had_by_accident(self, x):
        with pytest.raises(TypeError, match='copy them to the CPU first'):
            x.numpy()


class TestTensors:
    def test_device(self, x):
        assert x.device == torch.device(NAME, 0)
        assert not x.is_cpu
        assert x.cpu().is_cpu

    def test_changed_in_place(self, x):
        alias = x
        alias[1:].mul_(2)
        torch.add(x, 1, out=x)
        assert x is alias
        assert x.tolist() == [2, -3, 7]

    def test_shape_changed_in_place(self, x):
        x.unsqueeze_(0)
        assert x.shape == (1, 3)
        assert (x.t_() * 2).tolist() == [[2], [-4], [6]]
        x.squeeze_()
        assert (x + torch.ones(3, device=NAME)).shape == (3,)

    def test_data(self, x):
        parameter = nn.Parameter(x)
        parameter.data = x.half()
        assert parameter.dtype == torch.float16
        assert (parameter * 2).dtype == torch.float16

    def test_modules(self):
        linear = nn.Linear(3, 2).to(NAME)
        twin = copy.deepcopy(linear).double()
        assert all(isinstance(p, nn.Parameter) for p in twin.parameters())
        assert twin.weight.device.type == linear.weight.device.type == NAME
        assert (twin.weight.dtype, linear.weight.dtype) == (
            torch.float64,
            torch.float32,
        )
        linear.load_state_dict(nn.Linear(3, 2).state_dict())
        assert linear.cpu().weight.is_cpu

    def test_backward_runs_in_a_thread_of_its_own(self, x):
        threads = []
        x.requires_grad_()
        y = x * 2
        y.register_hook(lambda grad: threads.append(threading.get_ident()))
        (y * y).sum().backward()
        assert x.grad.tolist() == [8, -16, 24]
        assert threads[0] != threading.get_ident()

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_autocast(self, dtype):
        layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).to(NAME)
        images = torch.rand(1, 3, 4, 4, device=NAME)
        with torch.autocast(NAME, dtype):
            assert layers[0](images).dtype == dtype
            assert layers(images).dtype == torch.float32
            layers(images).square().sum().backward()
            with torch.autocast(NAME, enabled=False):
                assert layers[0](images).dtype == torch.float32
        assert layers[0](images).dtype == torch.float32
        assert layers[0].weight.grad.dtype == torch.float32
