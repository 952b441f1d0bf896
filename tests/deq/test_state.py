import pytest
import torch

from mdeq_mm.deq import StateLayout

FEATURES = (torch.randn(2, 3, 5, 4), torch.randn(2, 6, 3, 2), torch.randn(2, 7))


class TestStateLayout:
    def test_round_trip(self):
        layout = StateLayout.of(FEATURES)
        state = layout.pack(FEATURES)
        assert state.shape == (2, layout.numel) == (2, 60 + 36 + 7)
        for feature, unpacked in zip(FEATURES, layout.unpack(state)):
            assert torch.equal(feature, unpacked)

    def test_unpack_returns_views(self):
        layout = StateLayout.of(FEATURES)
        state = layout.pack(FEATURES)
        storage = state.untyped_storage().data_ptr()
        for feature in layout.unpack(state):
            assert feature.untyped_storage().data_ptr() == storage

    def test_gradient_passes(self):
        features = [feature.double().requires_grad_() for feature in FEATURES]
        layout = StateLayout.of(features)

        def round_trip(*features):
            return layout.unpack(layout.pack(features))

        assert torch.autograd.gradcheck(round_trip, features)

    def test_pack_refuses_other_shapes(self):
        layout = StateLayout.of(FEATURES)
        with pytest.raises(ValueError, match=r'\(3, 5, 4\).*\(6, 3, 2\)'):
            layout.pack(FEATURES[::-1])

    def test_unpack_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r'\(B, 103\), got \(2, 10\)'):
            StateLayout.of(FEATURES).unpack(torch.zeros(2, 10))

    def test_needs_a_feature_map(self):
        with pytest.raises(ValueError, match='shapes must name'):
            StateLayout([])
