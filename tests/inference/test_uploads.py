import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mdeq_mm.inference import UploadLimits

# The pixels of a PNG begin here.
IDAT = struct.pack('>I', 9) + b'IDAT'


def png_header(width, height):
    """A PNG of a size, whose pixels are not there."""
    chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    crc = struct.pack('>I', zlib.crc32(chunk))
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + crc + IDAT


NO_IMAGE = {
    'empty': b'',
    'text': b'no image at all',
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    'zeros': bytes(1000),
    'signature': b'\x89PNG\r\n\x1a\n',
    'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n',
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'upload'


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'WEBP', 'BMP'])
def test_images(path, form):
    Image.new('RGB', (40, 20)).save(path, form)
    UploadLimits(max_bytes=path.stat().st_size, max_pixels=800).check(path)


def test_too_many_bytes(path):
    cv2.imwrite(f'{path}.png', np.zeros((20, 40, 3), np.uint8))
    size = path.with_suffix('.png').stat().st_size
    with pytest.raises(ValueError, match=f'at most {size - 1} bytes, got {size}'):
        UploadLimits(max_bytes=size - 1).check(f'{path}.png')


@pytest.mark.parametrize('width', [41, 10000])
def test_too_many_pixels(path, width):
    path.write_bytes(png_header(width, 20))
    with pytest.raises(ValueError, match=f'at most 800 pixels, got {width} x 20'):
        UploadLimits(max_pixels=800).check(path)


def test_far_too_many_pixels(path):
    path.write_bytes(png_header(2**30, 2**30))
    with pytest.raises(ValueError, match='at most 4,000,000 pixels, got far more'):
        UploadLimits().check(path)


@pytest.mark.parametrize(
    ('size', 'long', 'short'), [((9, 2), 9, 2), ((1, 800), 800, 1)]
)
def test_sliver(path, size, long, short):
    """What scales the shorter side of such an image up would need all memory."""
    path.write_bytes(png_header(*size))
    message = f'at most 4 times as long as the other, got {long} and {short} pixels'
    with pytest.raises(ValueError, match=message):
        UploadLimits(max_aspect=4).check(path)
    path.write_bytes(png_header(8, 2))
    UploadLimits(max_aspect=4).check(path)


@pytest.mark.parametrize('name', NO_IMAGE)
def test_no_image(path, name):
    path.write_bytes(NO_IMAGE[name])
    with pytest.raises(ValueError, match='must be an image in the format of PNG'):
        UploadLimits().check(path)


def test_other_formats(path):
    Image.new('RGB', (40, 20)).save(path, 'TIFF')
    with pytest.raises(ValueError, match='must be an image in the format of PNG'):
        UploadLimits().check(path)


@pytest.mark.parametrize('name', ['max_bytes', 'max_pixels', 'max_aspect'])
def test_bad_limits(name):
    with pytest.raises(ValueError, match=f'{name} must be .* got 0'):
        UploadLimits(**{name: 0})
