"""The bytes between a worker and its parent."""

import io
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmap.core.errors import ReadError
from offmap.core.types import Frame, Image, NotAssessed
from offmap.read.messages import decode, encode, pack, unpack
from offmap.read.parts import Known


def _image(pixels: np.ndarray) -> Image:
    return Image(
        pixels,
        "größe/\udcff[3]#4",
        Frame((20, 30), (1.5, -2.0), (19.0, 31.5)),
        spacing=(0.5, 0.25),
        bits=12,
        file_format="dicom",
        modality="CT",
        window=(40.0, 80.0),
        group="abc",
        digest="f" * 64,
        meta={"site": 'Zürich\n"x"'},
        identifiers={"PatientID": "1"},
        mask=pixels[0] > 3,
    )


def _across(message):
    stream = io.BytesIO(b"".join(bytes(piece) for piece in encode({"task": 3}, message)))

    def fill(buffer: memoryview) -> bool:
        return stream.readinto(buffer) == len(buffer)

    received = decode(fill, limit=1 << 20)
    assert received is not None
    envelope, back = received
    assert envelope == {"task": 3}
    assert decode(fill, limit=1 << 20) is None
    return back


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint32", "float32", "float64", "bool"])
@pytest.mark.parametrize("shape", [(1, 20, 30), (3, 20, 30), (1, 4, 20, 30)])
def test_images_come_back_as_they_were(rng, dtype: str, shape: tuple[int, ...]) -> None:
    image = _image((rng.random(shape) * 100).astype(dtype))
    back = unpack(_across(pack(image)))
    assert isinstance(back, Image)
    for field in fields(Image):
        if field.name in ("pixels", "mask"):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(image, field.name))
        else:
            assert getattr(back, field.name) == getattr(image, field.name)


def test_views_and_missing_things(rng) -> None:
    image = replace(_image(rng.random((20, 30, 3)).transpose(2, 0, 1)), spacing=None, window=None, mask=None)
    back = unpack(_across(pack(image)))
    assert isinstance(back, Image)
    assert (back.spacing, back.window, back.mask) == (None, None, None)
    np.testing.assert_array_equal(back.pixels, image.pixels)


@pytest.mark.parametrize("outcome", [NotAssessed("x", "bomb", "größer"), Known("x", "d")])
def test_rows_without_pixels(outcome) -> None:
    assert unpack(_across(pack(outcome))) == outcome


@pytest.mark.parametrize("header", [{}, {"item": "x"}, {"item": "x", "frame": 3}, {"item": "x", "frame": [[1], ["a"], [2]]}])
def test_headers_that_pack_never_writes(header) -> None:
    with pytest.raises(ReadError) as caught:
        unpack((header, [np.zeros((1, 8, 8))]))
    assert caught.value.reason == "crashed"


def test_unknown_reasons_become_failed() -> None:
    assert unpack(({"item": "x", "reason": "<script>", "detail": ""}, [])).reason == "failed"


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message(raw: bytes) -> None:
    stream = io.BytesIO(raw)
    try:
        received = decode(lambda buffer: stream.readinto(buffer) == len(buffer), limit=1 << 16)
    except (ValueError, KeyError, TypeError):
        return
    assert received is None or isinstance(received[1][0], dict)


@pytest.mark.parametrize(
    "kind", [["|O", [4]], ["<f8", [1 << 40]], ["<f8", [-1]], ["<f8", ["x"]], ["<c16", [1]], ["<f8,<f8", [1]], [[], []]]
)
def test_impossible_arrays(kind) -> None:
    import json
    import struct

    raw = json.dumps({"header": {}, "arrays": [kind]}).encode()
    stream = io.BytesIO(struct.pack("<IQ", len(raw), 8) + raw + bytes(8))
    with pytest.raises((ValueError, TypeError)):
        decode(lambda buffer: stream.readinto(buffer) == len(buffer), limit=1 << 16)
