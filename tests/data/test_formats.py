"""Files: their formats, their metadata and the limit of their pixels. Only pixels decide whether one is read."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from poa_hf.data import CropArguments, PretrainingLoader, UndecodableImage, multi_crop, open_image
from poa_hf.data.decoding import open_lazily
from poa_hf.data.formats import RASTER_FORMATS

from .test_decoding import as_file

SMALL = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
PIXELS = SMALL.repeat(8, axis=0).repeat(8, axis=1)
PICTURE = Image.fromarray(PIXELS)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}, "PPM": {}, "TGA": {}, "QOI": {}, "ICO": {}}
LOSSLESS |= {"PCX": {}, "SGI": {}, "DDS": {}, "IM": {}, "JPEG2000": {"irreversible": False}, "MSP": {}, "GIF": {}}
TURNS = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 6: lambda x: np.rot90(x, -1)}
TURNS |= {5: lambda x: x.transpose(1, 0, 2), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: np.rot90}


@pytest.mark.parametrize("format", LOSSLESS)
def test_raster_formats_are_read(format):
    assert format in RASTER_FORMATS
    image = {"MSP": PICTURE.convert("1"), "GIF": PICTURE.quantize(24)}.get(format, PICTURE)
    options = LOSSLESS[format] | ({"sizes": [PICTURE.size]} if format == "ICO" else {})
    assert np.array_equal(np.asarray(open_image(as_file(image, format, **options))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_images_is_read(format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = as_file(PICTURE.quantize(24), format, save_all=True, append_images=[PICTURE.rotate(180)], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(np.asarray(open_image(data)), PIXELS)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(rm) run\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (POSTSCRIPT, "PostScript"),
        (b"\xd7\xcd\xc6\x9a" + bytes(80), "Windows metafile"),
        (b"SIMPLE  =                    T" + bytes(80), "FITS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "HDF5"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"  <!doctype html><title>404</title>", "web page"),
        (b"", r"empty \(0 bytes\)"),
        (b"words", "no known image format"),
    ],
)
def test_other_files_are_refused_by_name(data, words, monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(UndecodableImage, match=words):
        open_image(data)


def test_a_format_that_pillow_was_built_without_says_what_to_install(monkeypatch):
    data = as_file(PICTURE, "WEBP")
    monkeypatch.delitem(Image.OPEN, "WEBP")
    with pytest.raises(UndecodableImage, match="WebP, which this Pillow was built without: install"):
        open_image(data)


def app1(payload: bytes, orientation: int | None = None) -> bytes:
    """A JPEG with a segment of metadata behind its beginning."""
    plain = as_file(PICTURE, "JPEG", quality=100, subsampling=0)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + plain[2:]


def exif(*fields: tuple[int, int, int, bytes], extra: bytes = b"", endian: str = "<") -> bytes:
    """An EXIF block of fields: tag, type, count, and 4 bytes of value or offset."""
    start = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(f"{endian}IH", 8, len(fields))
    packed = b"".join(struct.pack(f"{endian}HHI", *field[:3]) + field[3] for field in fields)
    return b"Exif\0\0" + start + packed + bytes(4) + extra


def turn(value: int) -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack("<HH", value, 0)


ODD_FIELDS = {
    "denominator 0": ((0x011A, 5, 1, struct.pack("<I", 38)), struct.pack("<II", 72, 0)),
    "software as a number": ((0x0131, 11, 1, struct.pack("<f", 2.5)), b""),
    "width as text": ((0x0100, 2, 3, b"48\0\0"), b""),
    "resolution as text": ((0x011A, 2, 3, b"72\0\0"), b""),
    "date as a rational": ((0x0132, 5, 1, struct.pack("<I", 38)), struct.pack("<II", 1, 3)),
    "offset behind the end": ((0x010F, 2, 900, struct.pack("<I", 5000)), b""),
    "a folder that is a loop": ((0x8769, 4, 1, struct.pack("<I", 8)), b""),
    "unknown type": ((0x9999, 77, 1, b"abcd"), b""),
    "GPS as text": ((0x8825, 2, 4, b"here"), b""),
    "maker note": ((0x927C, 7, 4, b"\xff\xfe\0\1"), b""),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("odd", ODD_FIELDS)
def test_odd_fields_do_not_hide_the_orientation(odd, orientation):
    field, extra = ODD_FIELDS[odd]
    fields = sorted([turn(orientation), field])
    data = app1(exif(*fields, extra=extra))
    plain = np.asarray(Image.open(io.BytesIO(app1(b""))).convert("RGB"))
    assert np.array_equal(np.asarray(open_image(data)), TURNS[orientation](plain))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_every_format_that_has_one(format, orientation):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    tag = Image.Exif()
    tag[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    options["AVIF"] |= {"subsampling": "4:4:4"}
    data = as_file(PICTURE, format, exif=tag, **options.get(format, {}))
    result = np.asarray(open_image(data)).astype(int)
    assert np.abs(result - TURNS[orientation](PIXELS)).mean() < 3
    args = CropArguments(global_crop_size=32, local_crop_size=8, num_local_crops=0, global_crop_scale=[1.0, 1.0])
    lazily = multi_crop(open_lazily(data), np.random.default_rng(0), args)
    upright = multi_crop(Image.fromarray(result.astype(np.uint8)), np.random.default_rng(0), args)
    assert np.array_equal(lazily[0], upright[0])


@pytest.mark.parametrize(
    "value",
    [
        (0x0112, 3, 1, struct.pack("<HH", 0, 0)),
        (0x0112, 3, 1, struct.pack("<HH", 9, 0)),
        (0x0112, 3, 1, struct.pack("<HH", 65535, 0)),
        (0x0112, 2, 2, b"6\0\0\0"),
        (0x0112, 11, 1, struct.pack("<f", 6.0)),
        (0x0112, 12, 1, struct.pack("<I", 9999)),
        (0x0112, 3, 3, struct.pack("<I", 9999)),
        (0x0112, 7, 4, b"\6\0\0\0"),
    ],
)
def test_an_orientation_that_is_none_leaves_the_image_as_it_is(value):
    plain = np.asarray(Image.open(io.BytesIO(app1(b""))).convert("RGB"))
    assert np.array_equal(np.asarray(open_image(app1(exif(value)))), plain)


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


BOMB = zlib.compress(bytes(3 << 20))
PNG_CHUNKS = {
    "text bomb": chunk(b"zTXt", b"a\0\0" + BOMB),
    "international text bomb": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "colour profile bomb": chunk(b"iCCP", b"a\0\0" + BOMB),
    "broken colour profile": chunk(b"iCCP", b"a\0\0" + b"not zlib"),
    "wrong checksum": chunk(b"tEXt", b"a\0b", checksum=7),
    "EXIF garbage": chunk(b"eXIf", bytes(range(40))),
    "EXIF as text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n   9\nzz\n")),
    "XMP not UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe"),
    "no name": chunk(b"tEXt", b""),
    "short time": chunk(b"tIME", b"\0"),
    "short resolution": chunk(b"pHYs", b"\0"),
    "short gamma": chunk(b"gAMA", b""),
    "short chromaticities": chunk(b"cHRM", b"abc"),
    "unknown": chunk(b"zzZz", b"\xff" * 30),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", PNG_CHUNKS)
def test_png_chunks_that_hold_no_pixels_spoil_none(kind, place):
    plain = as_file(PICTURE, "PNG")
    at = 33 if place == "before" else len(plain) - 12
    data = plain[:at] + PNG_CHUNKS[kind] + plain[at:]
    assert np.array_equal(np.asarray(open_image(data)), PIXELS)


def test_many_texts_within_the_limit_of_each_spoil_no_image():
    texts = b"".join(chunk(b"zTXt", b"a%d\0\0" % number + zlib.compress(bytes(1 << 20))) for number in range(70))
    plain = as_file(PICTURE, "PNG")
    assert len(texts) < 200_000 and PngImagePlugin.MAX_TEXT_MEMORY < 70 << 20
    assert np.array_equal(np.asarray(open_image(plain[:33] + texts + plain[33:])), PIXELS)


@pytest.mark.parametrize("marker", range(0xE0, 0xF0))
@pytest.mark.parametrize("payload", [b"", b"\0", b"Exif\0\0", b"Photoshop 3.0\0" + b"8BIM" + bytes(3), b"MPF\0MM\0*"])
def test_jpeg_segments_of_applications_spoil_no_image(marker, payload):
    plain = as_file(PICTURE, "JPEG", quality=100, subsampling=0)
    data = plain[:20] + b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload + plain[20:]
    assert open_image(data).size == PICTURE.size


def test_reading_an_image_says_nothing_about_its_metadata(recwarn):
    warnings.simplefilter("always")
    open_image(app1(exif(*[ODD_FIELDS["offset behind the end"][0]])))
    assert not recwarn.list


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "array", "image"])
def test_pixels_are_counted_before_they_are_decoded(format, monkeypatch):
    image = Image.new("L", (300, 200))
    value = {"array": np.zeros((200, 300)), "image": image}.get(format) if format in ("array", "image") else None
    value = as_file(image, format) if value is None else value
    assert open_image(value, max_pixels=60_000).size == (300, 200)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(UndecodableImage, match="300 x 200 pixels large.*raise max_image_pixels"):
        open_image(value, max_pixels=59_999)


def png_header(width: int, height: int) -> bytes:
    """A PNG of zeros that claims a size; its pixels compress to a thousandth."""
    row = bytes(1 + width // 8)
    body = zlib.compress(row * min(height, 2000), 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_costs_no_memory(size):
    import tracemalloc

    data = png_header(*size) if size[0] < 2**20 else png_header(8, 8)
    if size[0] >= 2**20:
        data = data[:16] + struct.pack(">II", *size) + data[24:]
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    tracemalloc.start()
    with pytest.raises(UndecodableImage, match="pixels"):
        open_image(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_limit_replaces_that_of_pillow_and_leaves_it_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("PNG", "WEBP", "GIF", "TIFF"):
            assert open_image(as_file(PICTURE, format)).size == PICTURE.size
    assert Image.MAX_IMAGE_PIXELS == 100


def test_training_leaves_large_images_out_and_names_them(caplog):
    args = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=1, max_image_pixels=48 * 32)
    images = [as_file(PICTURE, "PNG")] * 5 + [as_file(Image.new("L", (48, 33)), "JPEG")]
    loader = PretrainingLoader(images, args, 6, (2, 2))
    batch = next(iter(loader))
    assert batch["skipped"] == 1 and "5" not in batch["image_ids"]
    assert "48 x 33 pixels large" in caplog.text and "max_image_pixels" in caplog.text


SEEDS = [as_file(PICTURE, format) for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "QOI")]
SEEDS += [as_file(PICTURE.quantize(9), format) for format in ("GIF", "PCX")] + [as_file(PICTURE, "JPEG2000")]
SEEDS += [app1(exif(turn(6))), as_file(PICTURE, "JPEG", progressive=True), as_file(PICTURE.convert("CMYK"), "JPEG")]
if features.check("avif"):
    SEEDS.append(as_file(PICTURE, "AVIF"))
FUZZ = settings(
    max_examples=100, deadline=5000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def result_or_one_sentence(value) -> None:
    args = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=1)
    try:
        image = open_image(value, max_pixels=10**6)
        assert image.mode == "RGB" and 0 < image.width * image.height <= 10**6
        multi_crop(open_lazily(value, 10**6), np.random.default_rng(0), args)
    except UndecodableImage as error:
        assert str(error) and "\n" not in str(error) and "0x7" not in str(error)


@FUZZ
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=8),
    cut=st.floats(0.0, 1.0),
)
def test_mutated_files_are_an_image_or_undecodable(seed, edits, cut):
    data = bytearray(seed)
    for place, content in edits:
        at = int(place**3 * (len(data) - 1))  # mostly in the header
        data[at : at + len(content)] = content
    result_or_one_sentence(bytes(data[: len(data) if cut > 0.5 else int(2 * cut * len(data))]))


@FUZZ
@given(start=st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), rest=st.binary(max_size=400))
def test_random_bytes_are_an_image_or_undecodable(start, rest):
    result_or_one_sentence(start + rest)


@FUZZ
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "F", "S3", "U2", "M8[s]", "O"]),
    content=st.binary(max_size=64),
)
def test_random_arrays_are_an_image_or_undecodable(shape, dtype, content):
    size = int(np.prod(shape, dtype=int))
    if dtype == "O":
        array = np.array([None] * size, dtype=object).reshape(shape)
    else:
        itemsize = np.dtype(dtype).itemsize
        array = np.frombuffer((content or b"\0") * (size * itemsize + 1), dtype=dtype, count=size).reshape(shape)
    result_or_one_sentence(array)
    result_or_one_sentence(array.tolist())


@settings(FUZZ, max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=30),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "x"]), inner),
        max_leaves=9,
    )
)
def test_any_value_is_an_image_or_undecodable(value):
    result_or_one_sentence(value)
