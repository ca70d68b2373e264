"""Hypothesis strategies: valid input, spoilt by bits, by structure, and by headers that announce too much."""

import copy
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tomli_w
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from PIL import Image

HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 10**30, 10**400)
SIZES = st.one_of(st.integers(0, 20), st.sampled_from([-1, 255, 256, 65535, 65536, 10**6, *HUGE]))
NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                ".",
                "..",
                "../up",
                "/etc/passwd",
                "a/b",
                "a\\b",
                "~",
                "~nobody-here",
                "a\nb",
                "a\x00b",
                "\x1b[2J",
                "\u202e",
            ),
            *(
                "<script>",
                "%s%n",
                "{{ 7 * 7 }}",
                "=1+1",
                "nan",
                "1" * 5000,
                "a" * 300,
                "\ud800",
                "\udcff",
                "client-1",
                "0",
                "9" * 90,
            ),
        ]
    ),
    st.text(max_size=12),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([*HUGE, *(-size for size in HUGE)]),
    st.floats(),
    NAMES,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=4
)


# --- bytes -----------------------------------------------------------------------------------------


@st.composite
def spoilt_bytes(draw: DrawFn, content: bytes) -> bytes:
    """Return bytes with some changed, put in, left out or doubled; perhaps cut short."""
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # Headers are at the beginning, directories of archives at the end.
        near = draw(st.sampled_from([len(spoilt), min(len(spoilt), 64), min(len(spoilt), 600)]))
        at = draw(st.integers(0, max(near - 1, 0)))
        if draw(st.booleans()):
            at = max(len(spoilt) - 1 - at, 0)
        kind = draw(st.sampled_from(["bit", "byte", "word", "put", "out", "double", "cut", "zero"]))
        if kind == "bit" and spoilt:
            spoilt[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and spoilt:
            spoilt[at] = draw(st.integers(0, 255))
        elif kind == "word":
            word = draw(st.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            spoilt[at : at + 4] = struct.pack(draw(st.sampled_from([">I", "<I"])), word)
        elif kind == "put":
            spoilt[at:at] = draw(st.binary(max_size=12))
        elif kind == "out":
            del spoilt[at : at + draw(st.integers(1, 16))]
        elif kind == "double":
            spoilt[at:at] = spoilt[at : at + draw(st.integers(1, 64))]
        elif kind == "cut":
            del spoilt[at:]
        else:
            size = draw(st.integers(1, 16))
            spoilt[at : at + size] = bytes(size)
    return bytes(spoilt)


def nearly(content: bytes) -> SearchStrategy[bytes]:
    """Return a valid file, spoilt; or one that has nothing to do with it."""
    return st.one_of(*[spoilt_bytes(content)] * 4, st.binary(max_size=200), st.just(content))


# --- structures ------------------------------------------------------------------------------------


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to everything in a structure of lists and dictionaries, those at the top first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*here, key) for key, _ in inner]
    for key, own in list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if found else []:
        found += places(own, (*here, key))
    return found


@st.composite
def spoilt_structure(draw: DrawFn, value: Any, values: SearchStrategy[Any] = VALUES) -> Any:
    """Return a structure in which something is another thing, is called otherwise, is gone, or is there twice."""
    spoilt = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        there = places(spoilt)
        if not there or draw(st.integers(0, 30)) == 0:
            return draw(values)
        *way, last = draw(st.sampled_from(there))
        holder = spoilt
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(["other", "other", "other", "gone", "named", "more"]))
        if kind == "other":
            holder[last] = draw(values)
        elif kind == "gone":
            del holder[last]
        elif isinstance(holder, dict):
            own = holder.pop(last) if kind == "named" else copy.deepcopy(holder[last])
            holder[draw(NAMES)] = own
        else:
            holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[last]))
    return spoilt


def at(value: Any, way: tuple[Any, ...]) -> Any:
    """Return what is at a path."""
    for key in way:
        value = value[key]
    return value


@st.composite
def spoilt_leaves(draw: DrawFn, value: Any) -> Any:
    """Return a structure of the same form, in which a number or a text is another one, perhaps from another place."""
    spoilt = copy.deepcopy(value)
    leaves = [way for way in places(value) if not isinstance(at(value, way), dict | list)]
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(leaves))
        other = at(value, draw(st.sampled_from(leaves))) if draw(st.booleans()) else draw(SCALARS)
        at(spoilt, tuple(way))[last] = other
    return spoilt


DEEP = [b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900]


def spoilt_json(content: bytes) -> SearchStrategy[bytes]:
    """Return a JSON file, spoilt."""
    value = json.loads(content)
    return st.one_of(
        *[spoilt_structure(value).map(lambda spoilt: json.dumps(spoilt).encode())] * 4,
        spoilt_bytes(content),
        st.sampled_from(DEEP),
    )


def spoilt_lines(content: bytes) -> SearchStrategy[bytes]:
    """Return a file of JSON lines, spoilt."""
    value = [json.loads(line) for line in content.splitlines()]

    def write(spoilt: Any) -> bytes:
        lines = spoilt if isinstance(spoilt, list) else [spoilt]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    return st.one_of(
        *[spoilt_structure(value).map(write)] * 4, spoilt_bytes(content), st.sampled_from(DEEP).map(lambda d: d + b"\n")
    )


def spoilt_toml(content: bytes) -> SearchStrategy[bytes]:
    """Return a TOML file, spoilt."""
    import tomllib

    value = tomllib.loads(content.decode())

    def write(spoilt: Any) -> bytes:
        try:
            return tomli_w.dumps(spoilt).encode()
        except (TypeError, AttributeError, ValueError, UnicodeEncodeError):  # TOML has no None
            return content

    return st.one_of(
        *[spoilt_structure(value).map(write)] * 4,
        spoilt_bytes(content),
        st.sampled_from([b"a = " + deep for deep in DEEP]),
    )


def spoilt_csv(content: bytes) -> SearchStrategy[bytes]:
    """Return a CSV file, spoilt; its cells hold no line breaks before."""
    value = [line.split(",") for line in content.decode().splitlines()]
    cells = st.one_of(NAMES, st.floats().map(str), SIZES.map(str), st.sampled_from(["x" * 200_000, '"', "1e999"]))

    def write(spoilt: Any) -> bytes:
        lines = spoilt if isinstance(spoilt, list) else [[spoilt]]
        return "".join(",".join(map(str, line if isinstance(line, list) else [line])) + "\n" for line in lines).encode(
            errors="replace"
        )

    return st.one_of(*[spoilt_structure(value, cells).map(write)] * 4, spoilt_bytes(content))


def spoilt_safetensors(content: bytes) -> SearchStrategy[bytes]:
    """Return a safetensors file, spoilt: its header, what the header's metadata say, or any of its bytes."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    for key, text in header.get("__metadata__", {}).items():
        header["__metadata__"][key] = json.loads(text)

    def write(spoilt: Any, length: int | None = None) -> bytes:
        spoilt = copy.deepcopy(spoilt)
        about = spoilt.get("__metadata__") if isinstance(spoilt, dict) else None
        if isinstance(about, dict):
            spoilt["__metadata__"] = {key: json.dumps(own) for key, own in about.items()}
        text = json.dumps(spoilt).encode()
        text += b" " * (-len(text) % 8)
        told = len(text) if length is None else length
        return struct.pack("<Q", told % 2**64) + text + data

    about = header.get("__metadata__", {})
    told = st.one_of(spoilt_structure(about), *[spoilt_leaves(about)] * 2) if about else st.just(about)
    shapes = st.lists(SIZES, max_size=3)
    values = st.one_of(VALUES, shapes, st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "U8"]))
    return st.one_of(
        *[spoilt_structure(header, values).map(write)] * 3,
        *[told.map(lambda about: write(header | {"__metadata__": about}))] * 5,
        SIZES.map(lambda length: write(header, length)),
        spoilt_bytes(content),
    )


# --- arrays ----------------------------------------------------------------------------------------

DTYPES = st.sampled_from(
    [
        *("|u1", "<f4", "<f8", "<f2", ">f4", "<i8", "|b1", "<c8", "|O", "<U5", "|S3", "|V4", "<M8[s]", "<f16", "<U0"),
        *("<U1000000", "x", "", "|u1,|u1", "<i4, (3,)f4"),
    ]
)
SHAPES = st.one_of(
    st.lists(st.integers(0, 9), max_size=5).map(tuple),
    st.lists(SIZES, max_size=5).map(tuple),
    st.sampled_from([(3, 5, 5), (3,), (12, 8, 8), (12,), (2, 3, 5, 5)]),
)


@st.composite
def npy(draw: DrawFn) -> bytes:
    """Return an array as numpy writes it, with a header of its own mind."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    if draw(st.booleans()):
        shape, dtype = (
            draw(st.sampled_from([(12, 8, 8), (12,), (12, 6, 7, 3)])),
            draw(st.sampled_from(["|u1", "<f4", "<i8"])),
        )
    form = draw(st.sampled_from(["usual"] * 12 + ["lists", "text", "deep", "code", "more", "empty"]))
    header = {
        "usual": f"{{'descr': {dtype!r}, 'fortran_order': {draw(st.booleans())}, 'shape': {shape!r}, }}",
        "lists": f"{{'descr': [('a', {dtype!r}), ('a', '|O')], 'fortran_order': 0, 'shape': {list(shape)!r}, }}",
        "text": draw(st.text(max_size=20)),
        "deep": "(" * 5000,
        "code": "{'descr': __import__('os').system('false'), 'fortran_order': False, 'shape': (1,)}",
        "more": f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, 'x': 1L}}",
        "empty": "",
    }[form]
    text = header.encode("utf-8", "replace") + b"\n"
    version = draw(st.sampled_from([(1, 0)] * 8 + [(2, 0), (3, 0), (9, 9)]))
    size = len(text) if draw(st.integers(0, 20)) else draw(st.integers(0, 65535))
    prefix = b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", size)
    data = draw(st.sampled_from([b"", bytes(12 * 8 * 8), bytes(range(96)) * 16, b"\x80\x04N.", bytes(4000)]))
    return prefix + text + data


@st.composite
def npz(draw: DrawFn) -> bytes:
    """Return an archive of arrays, whose names, sizes and kinds may be anything."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for usual in draw(st.sampled_from([("x", "y"), ("x",), ("x", "y", "classes"), ("x", "x"), ()])):
            name = f"{usual}.npy" if draw(st.integers(0, 9)) else draw(NAMES)
            content = draw(npy()) if draw(st.integers(0, 3)) else draw(usual_array(usual))
            with _no_warnings():
                try:
                    archive.writestr(name, content)
                except (ValueError, IndexError):  # a name that no archive can hold
                    archive.writestr("x.npy", content)
    content = file.getvalue()
    return draw(spoilt_bytes(content)) if draw(st.integers(0, 3)) == 0 else content


@st.composite
def usual_array(draw: DrawFn, name: str) -> bytes:
    """Return an array that belongs there."""
    array = {
        "x": np.arange(12 * 8 * 8, dtype=np.uint8).reshape(12, 8, 8),
        "y": np.array(draw(st.lists(st.integers(-1, 3), min_size=12, max_size=12))),
        "classes": np.array(draw(st.lists(NAMES.filter(lambda n: "\x00" not in n), max_size=4)), dtype=str),
    }[name]
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _no_warnings() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore")


@st.composite
def idx(draw: DrawFn, content: bytes) -> bytes:
    """Return an idx file, perhaps compressed, perhaps with another header."""
    kind = draw(st.sampled_from(["spoilt", "header", "packed", "spoilt and packed"]))
    if kind == "header":
        sizes = draw(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 9), max_size=5))
        content = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + draw(st.binary(max_size=40))
    if "spoilt" in kind:
        content = draw(spoilt_bytes(content))
    if "packed" in kind:
        content = gzip.compress(content, 1, mtime=0)
        content = draw(spoilt_bytes(content)) if draw(st.booleans()) else content
    return content


# --- images ----------------------------------------------------------------------------------------


def images() -> dict[str, bytes]:
    """Return a small valid image of each kind, by name."""
    grey = Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9) * 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "what it shows"
    deep = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000)
    kinds: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("grey.png", grey, "PNG", {"exif": exif}),
        ("deep.png", deep, "PNG", {}),
        ("colour.png", grey.convert("RGBA"), "PNG", {}),
        ("palette.png", grey.convert("P"), "PNG", {"transparency": 3}),
        ("photo.jpg", grey.convert("RGB"), "JPEG", {"exif": exif}),
        ("progressive.jpg", grey.convert("RGB"), "JPEG", {"progressive": True, "exif": exif}),
        ("a.gif", grey, "GIF", {"save_all": True, "append_images": [grey.rotate(90)], "duration": 5}),
        ("a.bmp", grey.convert("RGB"), "BMP", {}),
        ("palette.bmp", grey.convert("P"), "BMP", {}),
        ("raw.tiff", deep, "TIFF", {"exif": exif}),
        ("lzw.tiff", grey.convert("RGB"), "TIFF", {"compression": "tiff_lzw"}),
        ("deflate.tiff", grey, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("float.tiff", grey.convert("F"), "TIFF", {}),
        ("a.webp", grey.convert("RGB"), "WEBP", {"exif": exif}),
        ("lossless.webp", grey.convert("RGBA"), "WEBP", {"lossless": True}),
        ("a.pgm", grey, "PPM", {}),
        ("a.ppm", grey.convert("RGB"), "PPM", {}),
    ]
    made = {}
    for name, image, form, options in kinds:
        file = io.BytesIO()
        image.save(file, form, **options)
        made[name] = file.getvalue()
    return made


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@st.composite
def announced(draw: DrawFn) -> bytes:
    """Return an image whose header, which is valid, says what the rest does not hold."""
    word = st.integers(0, 2**32 - 1) | st.sampled_from([1, 9, 30_000, 65_535, 2**31 - 1])
    width, height = draw(word), draw(word)
    form = draw(st.sampled_from(["png", "pgm", "bmp", "gif", "plain", "text"]))
    if form == "png":
        depth, colour = draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.sampled_from([0, 2, 3, 4, 6]))
        extra = draw(
            st.sampled_from(
                [
                    b"",
                    chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),
                    chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3_000_000))),
                    chunk(b"PLTE", b"abc"),
                    chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff"),
                ]
            )
        )
        start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw(st.integers(0, 1))))
        return b"\x89PNG\r\n\x1a\n" + start + extra + chunk(b"IDAT", zlib.compress(b"\0" * 900)) + chunk(b"IEND", b"")
    if form == "bmp":
        bits = draw(st.sampled_from([1, 4, 8, 16, 24, 32]))
        rest = struct.pack("<IIIHHIIIIII", 40, width, height, 1, bits, draw(st.integers(0, 4)), 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 200, 0, 0, 54) + rest + bytes(120)
    if form == "gif":
        small = struct.pack("<HH", width % 65536, height % 65536)
        return b"GIF89a" + small + b"\x80\0\0\0\0\0\xff\xff\xff," + bytes(4) + small + b"\0\x02\x02\x4c\x01\0;"
    if form == "plain":
        return f"P{draw(st.integers(1, 7))}\n{width} {height}\n{draw(SIZES)}\n".encode() + b"1 2 3 4 " * 9
    if form == "text":
        return f"P5\n{draw(NAMES)} {draw(NAMES)}\n255\n".encode(errors="replace") + bytes(40)
    return f"P5\n{width} {height}\n255\n".encode() + bytes(40)


def any_image() -> SearchStrategy[bytes]:
    """Return an image of some kind, spoilt."""
    valid = list(images().values())
    return st.one_of(*[spoilt_bytes(content) for content in valid], *[announced()] * 6, st.binary(max_size=100))


Write = Callable[[bytes], SearchStrategy[bytes]]
WRITERS: dict[str, Write] = {
    ".json": spoilt_json,
    ".jsonl": spoilt_lines,
    ".toml": spoilt_toml,
    ".csv": spoilt_csv,
    ".safetensors": spoilt_safetensors,
}
"""How a file of a run directory is spoilt, by its ending."""
