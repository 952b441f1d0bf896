"""Predictions for single images and for the frames of a video, and how they go."""

from .examination import examine_image, solver_named
from .explorer import LEAST_TOL, MOST_EVALS, Exploration, Explorer, shares_as_html
from .frames import FrameFolder, Frames, VideoFile, open_frames
from .predictor import Prediction, Predictor, Solve
from .uploads import UploadLimits
from .video import FrameRecord, Start, segment_frames, write_overlay_video
from .writing import (
    check_codec,
    check_image_path,
    video_writer,
    whole_file,
    write_image,
)

__all__ = [
    'LEAST_TOL',
    'MOST_EVALS',
    'Exploration',
    'Explorer',
    'FrameFolder',
    'FrameRecord',
    'Frames',
    'Prediction',
    'Predictor',
    'Solve',
    'Start',
    'UploadLimits',
    'VideoFile',
    'check_codec',
    'check_image_path',
    'examine_image',
    'open_frames',
    'segment_frames',
    'shares_as_html',
    'solver_named',
    'video_writer',
    'whole_file',
    'write_image',
    'write_overlay_video',
]
