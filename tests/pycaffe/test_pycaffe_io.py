"""caffe.io: messages, pre-processing, pictures; expected numbers come from the definitions or by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tolerances import tolerance

from imae.files.errors import DataError
from imae.prototxt import BlobProto, Datum
from imae.pycaffe import io


def ramp(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def close(got: NDArray[np.float32], want: object) -> None:
    rtol, atol, _ = tolerance("formula")
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * max(1, np.abs(want).max()))


# -- messages ------------------------------------------------------------------------------------------------


def test_blobs_go_to_messages_and_back() -> None:
    array = ramp(2, 3, 5)
    blob = io.array_to_blobproto(array, diff=-array)
    assert list(blob.shape.dim) == [2, 3, 5]
    assert (io.blobproto_to_array(blob) == array).all()
    assert (io.blobproto_to_array(blob, return_diff=True) == -array).all()
    assert io.array_to_blobproto(array).diff == []


def test_blobs_of_all_ages() -> None:
    old = BlobProto(num=1, channels=2, height=1, width=3, data=range(6))
    assert io.blobproto_to_array(old).tolist() == [[[[0, 1, 2]], [[3, 4, 5]]]]
    assert io.blobproto_to_array(BlobProto(data=[7])) == 7
    assert io.blobproto_to_array(BlobProto(double_data=[0.1])) == 0.1
    with pytest.raises(DataError, match=r"a BlobProto of shape \(\) holds 2 values"):
        io.blobproto_to_array(BlobProto(data=[1, 2]))
    with pytest.raises(DataError, match=r"one shape; got \(2,\) and \(3,\)"):
        io.array_to_blobproto(ramp(2), ramp(3))


def test_lists_of_blobs_go_to_bytes_and_back() -> None:
    arrays = [ramp(2, 3), ramp(4)]
    back = io.blobprotovector_str_to_arraylist(io.arraylist_to_blobprotovector_str(arrays))
    assert [array.tolist() for array in back] == [array.tolist() for array in arrays]


def test_datums_go_to_arrays_and_back() -> None:
    grey_levels = ramp(2, 3, 5).astype(np.uint8)
    datum = io.array_to_datum(grey_levels, 7)
    assert (datum.channels, datum.height, datum.width, datum.label) == (2, 3, 5, 7)
    assert datum.data == grey_levels.tobytes() and not datum.float_data
    back = io.datum_to_array(datum)
    assert back.dtype == np.uint8 and (back == grey_levels).all()
    back[...] = 0  # an array of the caller's own
    floats = io.array_to_datum(ramp(2, 3, 5))
    assert not floats.HasField("label") and not floats.data
    assert (io.datum_to_array(floats) == ramp(2, 3, 5)).all()
    assert io.array_to_datum(np.arange(6).reshape(1, 2, 3)).float_data == [0, 1, 2, 3, 4, 5]


def test_encoded_datums_are_decoded() -> None:
    picture = ramp(3, 5, 3).astype(np.uint8)
    datum = Datum(encoded=True, data=cv2.imencode(".png", picture)[1].tobytes())
    assert (io.datum_to_array(datum) == picture.transpose(2, 0, 1)).all()


def test_datums_refused() -> None:
    with pytest.raises(DataError, match=r"Incorrect array shape: .* got \(2, 3\)"):
        io.array_to_datum(ramp(2, 3))
    with pytest.raises(DataError, match="holds 3 values"):
        io.datum_to_array(Datum(channels=1, height=2, width=2, data=b"abc"))


# -- resizing ------------------------------------------------------------------------------------------------


def test_resize_keeps_what_has_the_size() -> None:
    for channels in (1, 2, 3):
        close(io.resize_image(ramp(3, 5, channels), (3, 5)), ramp(3, 5, channels))


def test_resize_takes_pixels_for_squares() -> None:
    row = np.array([[[2], [4], [10], [20]]], np.float32)
    close(io.resize_image(row, (1, 2))[0, :, 0], [3, 15])
    # Twice as wide: the outermost pixels mix with the least value, 2, that lies beyond the border.
    close(io.resize_image(row, (1, 8))[0, :, 0], [2, 2.5, 3.5, 5.5, 8.5, 12.5, 17.5, 15.5])
    close(io.resize_image(row, (1, 8), 0)[0, :, 0], [2, 2, 4, 4, 10, 10, 20, 20])


def test_resize_takes_pixels_for_points_with_other_numbers_of_channels() -> None:
    row = np.array([[[0, 10], [2, 20], [6, 40]]], np.float32)
    close(io.resize_image(row, (1, 5))[0], [[0, 10], [1, 15], [2, 20], [4, 30], [6, 40]])
    close(io.resize_image(row, (2, 2))[:, :, 0], [[0, 6], [0, 6]])
    close(io.resize_image(row, (1, 1))[0], [[0, 10]])


def test_resize_works_on_both_axes_and_on_constants() -> None:
    close(io.resize_image(ramp(4, 6, 1), (2, 3))[:, :, 0], [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])
    got = io.resize_image(np.full((3, 5, 3), 7), (7, 2))
    assert got.dtype == np.float32
    close(got, np.full((7, 2, 3), 7))


def test_resize_refuses() -> None:
    with pytest.raises(DataError, match=r"interp_order must be 0 \(nearest\) or 1 \(linear\); got 3"):
        io.resize_image(ramp(2, 2, 3), (4, 4), 3)
    with pytest.raises(DataError, match=r"\(H, W, K\); got \(2, 2\)"):
        io.resize_image(ramp(2, 2), (4, 4))


def test_oversample_crops_corners_centre_and_mirrors() -> None:
    picture = ramp(5, 7, 2)
    crops = io.oversample([picture, picture + 1], (2, 3))
    assert crops.shape == (20, 2, 3, 2) and crops.dtype == np.float32
    for crop, (y, x) in zip(crops, [(0, 0), (0, 4), (3, 0), (3, 4), (1, 2)], strict=False):
        close(crop, picture[y : y + 2, x : x + 3])
    close(crops[5:10], crops[:5, :, ::-1])
    close(crops[10:], crops[:10] + 1)
    with pytest.raises(DataError, match=r"crops of 6 x 3 do not fit an image of shape \(5, 7, 2\)"):
        io.oversample([picture], (6, 3))


# -- pictures ------------------------------------------------------------------------------------------------


def test_load_image_gives_rgb_from_0_to_1(tmp_path: Path) -> None:
    bgr = ramp(3, 5, 3).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "it.png"), bgr)
    close(io.load_image(tmp_path / "it.png"), bgr[:, :, ::-1] / 255)
    grey = 0.2125 * bgr[:, :, 2] + 0.7154 * bgr[:, :, 1] + 0.0721 * bgr[:, :, 0]
    close(io.load_image(tmp_path / "it.png", color=False)[:, :, 0], grey / 255)


def test_load_image_takes_grey_deep_and_transparent_pictures(tmp_path: Path) -> None:
    name = str(tmp_path / "it.png")
    grey = ramp(3, 5).astype(np.uint8)
    cv2.imwrite(name, grey)
    close(io.load_image(name), np.repeat(grey[:, :, None], 3, 2) / 255)
    close(io.load_image(name, color=False), grey[:, :, None] / 255)
    deep = (ramp(3, 5) * 1000).astype(np.uint16)
    cv2.imwrite(name, deep)
    close(io.load_image(name, color=False), deep[:, :, None] / 65535)
    bgra = ramp(3, 5, 4).astype(np.uint8)
    cv2.imwrite(name, bgra)
    close(io.load_image(name), bgra[:, :, 2::-1] / 255)


def test_load_image_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Could not load nowhere\.png: No such file"):
        io.load_image("nowhere.png")
    for data in (b"", b"no picture"):
        (tmp_path / "it.png").write_bytes(data)
        with pytest.raises(DataError, match=r"could not decode the .* bytes as an image"):
            io.load_image(tmp_path / "it.png")


# -- Transformer ---------------------------------------------------------------------------------------------


def test_transformer_prepares_a_picture_and_undoes_it() -> None:
    transformer = io.Transformer({"data": (10, 3, 2, 5)})
    picture = ramp(2, 5, 3)
    before = picture.copy()
    close(transformer.preprocess("data", picture), picture)
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 10)
    transformer.set_mean("data", np.array([1, 2, 3]))
    transformer.set_input_scale("data", 0.5)
    blob = transformer.preprocess("data", picture)
    bgr = picture.transpose(2, 0, 1)[::-1]
    close(blob, (bgr * 10 - np.array([1, 2, 3]).reshape(3, 1, 1)) / 2)
    close(transformer.deprocess("data", blob[None]), picture)
    assert (picture == before).all()


def test_transformer_undoes_it_for_a_grey_picture() -> None:
    transformer = io.Transformer({"data": (1, 1, 3, 4)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (0,))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.array([78.0]))
    transformer.set_input_scale("data", 1 / 256)
    picture = ramp(3, 4, 1) / 12
    blob = transformer.preprocess("data", picture)
    for axes in (blob, blob[None], blob[0]):
        close(transformer.deprocess("data", axes), picture[:, :, 0])


def test_transformer_resizes_picture_and_mean() -> None:
    transformer = io.Transformer({"data": (1, 1, 2, 3)})
    transformer.set_transpose("data", (2, 0, 1))
    close(transformer.preprocess("data", ramp(4, 6, 1)), [[[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]])
    transformer.set_mean("data", ramp(1, 4, 6))
    close(transformer.preprocess("data", ramp(4, 6, 1)), np.zeros((1, 2, 3)))
    transformer.set_mean("data", ramp(2, 3))
    close(transformer.preprocess("data", ramp(2, 3, 1)), np.zeros((1, 2, 3)))


def test_transformer_refuses() -> None:
    transformer = io.Transformer({"data": (1, 3, 2, 5)})
    with pytest.raises(DataError, match="label is not one of the net inputs: data"):
        transformer.preprocess("label", ramp(2, 5, 3))
    with pytest.raises(DataError, match=r"Transpose order .*: 3 for input 'data'; got \(1, 0\)"):
        transformer.set_transpose("data", (1, 0))
    with pytest.raises(DataError, match=r"Channel swap .*: 3 for input 'data'"):
        transformer.set_channel_swap("data", (1, 0))
    with pytest.raises(DataError, match="Mean channels incompatible with input: 3 for input 'data'; got 4"):
        transformer.set_mean("data", ramp(4))
    with pytest.raises(DataError, match="Mean shape invalid"):
        transformer.set_mean("data", ramp(1, 3, 2, 5))
