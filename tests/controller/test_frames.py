import time

import cv2
import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.frames import decode_image, encode_image, fit_image
from controller.types import CameraSpec, FrameEncoding

CAMERA = CameraSpec("front", 48, 64)


def gradient() -> np.ndarray:
    """Red grows downwards, green to the right, blue is weak: channels cannot be mistaken."""
    image = np.empty((48, 64, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, 48)[:, None]
    image[..., 1] = np.linspace(0, 255, 64)[None]
    image[..., 2] = 10
    return image


@pytest.mark.parametrize("encoding", [FrameEncoding.RAW, FrameEncoding.PNG])
def test_lossless_encodings_keep_every_bit(encoding):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    decoded = decode_image("f", encode_image(image, encoding), encoding, CAMERA)
    assert np.array_equal(decoded, image)


def test_jpeg_keeps_the_channels_in_order():
    data = encode_image(gradient(), FrameEncoding.JPEG)
    decoded = decode_image("f", data, FrameEncoding.JPEG, CAMERA)
    assert np.abs(decoded.astype(int) - gradient()).mean() < 3


def test_a_grey_jpeg_is_decoded_to_three_channels():
    grey = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 48, axis=0)
    data = cv2.imencode(".jpg", grey)[1].tobytes()
    into = np.zeros((48, 64, 3), np.uint8)
    decoded = decode_image("f", data, FrameEncoding.JPEG, CAMERA, into)
    assert np.shares_memory(decoded, into)
    assert np.abs(into.astype(int) - grey[..., None]).mean() < 3


def test_a_jpeg_that_hides_another_size_is_refused_and_not_read_in_part(monkeypatch):
    # Whatever a header may tell the two readers apart by: the decoder's own size counts, too.
    monkeypatch.setattr("controller.frames._jpeg_size", lambda data: (48, 64))
    for rows in (20, 47, 96):
        data = encode_image(np.zeros((rows, 64, 3), np.uint8), FrameEncoding.JPEG)
        for into in (None, np.zeros((48, 64, 3), np.uint8)):
            with pytest.raises(OnsetError) as caught:
                decode_image("f", data, FrameEncoding.JPEG, CAMERA, into)
            assert caught.value.code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize("encoding", list(FrameEncoding))
def test_what_is_no_whole_image_of_the_right_size_is_refused(encoding):
    good = encode_image(gradient(), encoding)
    small = encode_image(gradient()[:20], encoding)
    for bad in (good[:-1], good[: len(good) // 2], small, b"\x00" * 100, b"x"):
        with pytest.raises(OnsetError) as caught:
            decode_image("f", bad, encoding, CAMERA)
        assert caught.value.code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize("encoding", [FrameEncoding.JPEG, FrameEncoding.PNG])
def test_a_huge_image_in_a_small_message_is_refused_by_its_header(encoding):
    huge = encode_image(np.zeros((3000, 3000, 3), np.uint8), encoding)
    with pytest.raises(OnsetError, match="given 3000x3000; allowed: 48x64"):
        decode_image("f", huge, encoding, CAMERA)


def test_a_png_chunk_that_claims_more_than_there_is_is_refused_at_once():
    good = encode_image(gradient(), FrameEncoding.PNG)
    bad = good[:33] + (0x7FFFFFF0).to_bytes(4, "big") + good[37:]
    begin = time.monotonic()
    with pytest.raises(OnsetError):
        decode_image("f", bad, FrameEncoding.PNG, CAMERA)
    assert time.monotonic() - begin < 0.5  # the decoder alone takes seconds


def test_progressive_and_animated_images_are_refused():
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    progressive = cv2.imencode(".jpg", gradient(), options)[1].tobytes()
    with pytest.raises(OnsetError):
        decode_image("f", progressive, FrameEncoding.JPEG, CAMERA)
    good = encode_image(gradient(), FrameEncoding.PNG)
    animated = good[:33] + bytes([0, 0, 0, 8]) + b"acTL" + bytes(12) + good[33:]
    with pytest.raises(OnsetError):
        decode_image("f", animated, FrameEncoding.PNG, CAMERA)


def test_one_encoding_does_not_pass_for_another():
    data = encode_image(gradient(), FrameEncoding.PNG)
    with pytest.raises(OnsetError):
        decode_image("f", data, FrameEncoding.JPEG, CAMERA)


def test_random_damage_is_refused_or_gives_an_image_of_the_right_size():
    rng = np.random.default_rng(1)
    codes = set()
    for encoding in (FrameEncoding.JPEG, FrameEncoding.PNG):
        good = np.frombuffer(encode_image(gradient(), encoding), np.uint8)
        for _ in range(100):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 5)] = rng.integers(0, 256, 5)
            try:
                assert decode_image("f", bad.tobytes(), encoding, CAMERA).shape == (48, 64, 3)
            except OnsetError as error:
                codes.add(error.code)
    assert codes == {ErrorCode.BAD_FRAME}


@pytest.mark.parametrize("size", [(24, 32), (20, 20), (96, 64), (48, 64), (11, 61)])
def test_a_fitted_image_has_the_size_and_what_stood_where(size):
    fitted = fit_image(gradient(), *size)
    assert fitted.shape == (*size, 3)
    assert fitted.dtype == np.uint8
    for channel, axis in ((0, 0), (1, 1)):  # red still grows downwards, green to the right
        rising = fitted[..., channel].astype(float).mean(axis=1 - axis)
        assert np.allclose(rising, np.linspace(rising[0], rising[-1], len(rising)), atol=3)
        assert rising[-1] - rising[0] > 225


def test_fine_texture_becomes_its_mean_and_no_false_pattern():
    stripes = np.zeros((96, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.all(fit_image(stripes, 32, 42) == 100)
