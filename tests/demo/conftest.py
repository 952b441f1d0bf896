import pytest
import torch

from mdeq_mm import apis


@pytest.fixture
def save_model(root, tmp_path, calm):
    """Writes a checkpoint of a contraction; returns config and checkpoint."""

    def save(name):
        config = root / 'configs' / name
        model = calm(apis.build_model(apis.load_config(config)))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        return [str(config), str(tmp_path / 'model.pth')]

    return save
