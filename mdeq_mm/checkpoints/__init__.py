from .archive import check_archive
from .description import OfficialModel, describe_official_state_dict
from .official import check_official_state_dict, convert_official_state_dict
from .reading import OfficialCheckpoint, read_official_checkpoint

__all__ = [
    'OfficialCheckpoint',
    'OfficialModel',
    'check_archive',
    'check_official_state_dict',
    'convert_official_state_dict',
    'describe_official_state_dict',
    'read_official_checkpoint',
]
