"""Images to bytes and back: raw, JPEG, PNG. Images are uint8 RGB, shape (h, w, 3).

JPEG is libjpeg-turbo's by simplejpeg, which takes RGB as it is; by way of OpenCV's BGR it takes a
third longer.

Sizes are read from the header and compared with the CameraSpec before anything is decoded, and
what makes a decoder work out of proportion to its input is refused: a small message cannot ask for
a huge image.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
import simplejpeg

from controller.bounds import MAX_FRAME_BYTES
from controller.errors import ErrorCode, OnsetError
from controller.types import CameraSpec, FrameEncoding, Image

JPEG_QUALITY = 90

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_JPEG_SEQUENTIAL = (0xC0, 0xC1)
_JPEG_OTHER_FRAMES = (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)


def encode_image(image: Image, encoding: FrameEncoding) -> bytes:
    """Encodes one uint8 RGB image. Shape (h, w, 3).

    Raises:
        OnsetError: TOO_LARGE when the result is past MAX_FRAME_BYTES.
    """
    if encoding is FrameEncoding.RAW:
        data = np.ascontiguousarray(image).tobytes()
    elif encoding is FrameEncoding.JPEG:
        whole = np.ascontiguousarray(image)
        data = simplejpeg.encode_jpeg(whole, quality=JPEG_QUALITY, colorsubsampling="420")
    else:
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        _, buffer = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
        data = buffer.tobytes()
    check_bytes("observation.frames.data", data)
    return data


def check_bytes(field: str, data: bytes) -> None:
    """Checks the size of an encoded image.

    Raises:
        OnsetError: TOO_LARGE past MAX_FRAME_BYTES, BAD_FRAME when it is empty.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise OnsetError(
            ErrorCode.TOO_LARGE, field, f"{len(data)} bytes", f"1..{MAX_FRAME_BYTES} bytes"
        )
    if not data:
        raise OnsetError(ErrorCode.BAD_FRAME, field, "0 bytes", f"1..{MAX_FRAME_BYTES} bytes")


def fit_image(image: Image, height: int, width: int) -> Image:
    """Scales one image to another size, and stretches it where the proportions differ.

    An axis twice too long, or longer, is first halved (bilinear at one half is the mean of pairs),
    so that fine texture does not turn into false patterns. OpenCV's INTER_AREA gives nearly the
    same, and takes five times as long for ratios that are no whole number.

    Args:
        image: uint8 RGB. Shape (h, w, 3).
        height: Wanted [px].
        width: Wanted [px].

    Returns:
        uint8 RGB. Shape (height, width, 3); the same array where it has that size already.
    """
    rows, columns = image.shape[:2]
    while rows >= 2 * height or columns >= 2 * width:
        rows = rows // 2 if rows >= 2 * height else rows
        columns = columns // 2 if columns >= 2 * width else columns
        image = _resized(image, rows, columns)
    if (rows, columns) == (height, width):
        return image
    return _resized(image, height, width)


def _resized(image: Image, height: int, width: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height)), np.uint8)


def decode_image(
    field: str,
    data: bytes,
    encoding: FrameEncoding,
    camera: CameraSpec,
    into: Image | None = None,
) -> Image:
    """Decodes one image to uint8 RGB. Shape (camera.height, camera.width, 3).

    Args:
        field: Names it in errors.
        data: The encoded image.
        encoding: How it is encoded.
        camera: Whose size it must have.
        into: Where it is put, contiguous; a new array when None.

    Raises:
        OnsetError: TOO_LARGE past MAX_FRAME_BYTES; BAD_FRAME when it does not decode or has
            another size than the camera.
    """
    check_bytes(field, data)
    size = (camera.height, camera.width)
    if encoding is FrameEncoding.RAW:
        expected = camera.height * camera.width * 3
        if len(data) != expected:
            raise OnsetError(
                ErrorCode.BAD_FRAME,
                field,
                f"{len(data)} bytes",
                f"{expected} bytes ({camera.height}x{camera.width}x3)",
            )
        image = np.frombuffer(data, dtype=np.uint8).reshape(*size, 3)
        if into is None:
            return image
        into[:] = image
        return into
    header = _png_size(data) if encoding is FrameEncoding.PNG else _jpeg_size(data)
    if header is None:
        raise OnsetError(
            ErrorCode.BAD_FRAME, field, f"{len(data)} undecodable bytes", f"a whole {encoding}"
        )
    if header != size:
        raise OnsetError(
            ErrorCode.BAD_FRAME, field, f"{header[0]}x{header[1]}", f"{size[0]}x{size[1]}"
        )
    image = _from_jpeg(data, into) if encoding is FrameEncoding.JPEG else _from_png(data, into)
    if image is None or image.shape != (*size, 3):
        raise OnsetError(
            ErrorCode.BAD_FRAME, field, f"{len(data)} undecodable bytes", f"a whole {encoding}"
        )
    return image


def _from_jpeg(data: bytes, into: Image | None) -> Image | None:
    """uint8 RGB; None for what is damaged, which libjpeg-turbo would go on with if it might."""
    try:
        return simplejpeg.decode_jpeg(data, buffer=into, strict=True)
    except ValueError:
        return None


def _from_png(data: bytes, into: Image | None) -> Image | None:
    """uint8 RGB; None where OpenCV gives no image."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    if image is None:
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=into).astype(np.uint8, copy=False)


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Height and width [px] from the IHDR chunk; None when this is no whole, still PNG.

    Every chunk has to lie within the data: the decoder makes room for the length that a chunk
    claims before it looks for its bytes, up to 2 GiB for a file of 100 bytes.
    """
    if not data.startswith(_PNG_START) or data[12:16] != b"IHDR":
        return None
    at, kind = len(_PNG_START), b""
    while at + 12 <= len(data) and kind != b"IEND":
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind in _PNG_ANIMATION:
            return None
        at += 12 + length
    if kind != b"IEND" or at != len(data):
        return None
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width [px] from the start-of-frame segment; None when this is no whole JPEG.

    The end marker is demanded because decoders fill a cut-off image with grey and say nothing.
    Only sequential images pass: a progressive one may ask for any number of passes.
    """
    if not data.startswith(_JPEG_START) or not data.endswith(_JPEG_END):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _JPEG_SEQUENTIAL:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        if marker in _JPEG_OTHER_FRAMES:
            return None
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        at += 2 + length
    return None
