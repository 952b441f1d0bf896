from .archive import check_archive
from .description import OfficialModel, describe_official_state_dict
from .loading import load_checkpoint, load_from_local, safe_loading
from .matching import TRAINING_PARTS, is_sharded, load_weights
from .official import check_official_state_dict, convert_official_state_dict
from .reading import OfficialCheckpoint, read_official_checkpoint
from .resuming import Newest, Position, check_training_checkpoint, find_newest

__all__ = [
    'TRAINING_PARTS',
    'Newest',
    'OfficialCheckpoint',
    'OfficialModel',
    'Position',
    'check_archive',
    'check_official_state_dict',
    'check_training_checkpoint',
    'convert_official_state_dict',
    'describe_official_state_dict',
    'find_newest',
    'is_sharded',
    'load_checkpoint',
    'load_from_local',
    'load_weights',
    'read_official_checkpoint',
    'safe_loading',
]
