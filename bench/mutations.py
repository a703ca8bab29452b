"""Mutations of files: of their bytes, or of what the bytes mean."""

from __future__ import annotations

import ast
import copy
import gzip
import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
TEXTS = [
    "",
    " ",
    "x",
    "caf\udce9",
    "\x1b[31mred\x1b[0m",
    "a\nb\tc",
    "\0",
    "../../x",
    "/",
    "é" * 300,
]
VALUES: list[Any] = [
    None, True, False, -1, 0, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**30, 10**400,
    [], {}, [[]], [None], {"": None}, "9" * 5000, *NUMBERS, *TEXTS,
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage some bytes, more often near the beginning, where headers are."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(content)
        at = int(size * rng.random() ** rng.choice((1, 3)))
        length = min(rng.choice((1, 2, 4, 16, 256)), size - at)
        match rng.randrange(7):
            case 0 if length:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at : at + length] = rng.randbytes(length)
            case 2:
                form = rng.choice(("<I", ">I", "<H", ">H"))
                number = rng.choice(NUMBERS) % (1 << (8 * struct.calcsize(form)))
                content[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = content[at : at + length] * rng.choice((1, 1, 100))
            case 5:
                content[at : at + length] = bytes(length)
            case _:
                del content[at:]
    return bytes(content)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat some values of JSON."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutate_value(value, rng)
    text = json.dumps(value)
    return text.encode() if rng.random() < 0.8 else mutate_bytes(text.encode(), rng)


def _mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a value in which one item, at any depth, is changed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.93:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        match rng.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, list):
                value.insert(key, value[key])
            case 2 if isinstance(value, list) and len(value) < 1000:
                value *= rng.choice((2, 50))
            case _:
                value[key] = _mutate_value(value[key], rng)
        return value
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value - 1, value * 1000, value + 0.5, str(value)))
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return (
            value[:at] + rng.choice((chr(rng.randrange(32, 127)), "", "\x1b", value)) + value[at:]
        )
    if rng.random() < 0.05:
        nested: Any = []
        for _ in range(rng.choice((100, 900))):
            nested = [nested]
        return nested
    return copy.deepcopy(rng.choice(VALUES))


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat words of XML, YAML or CSV."""
    words = re.split(rb"(\W+)", data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(words))
        match rng.randrange(6):
            case 0:
                words[at] = b""
            case 1:
                words[at] *= rng.choice((2, 1000))
            case 2:
                words[at] = rng.choice(words)
            case 3:
                words[at] = str(rng.choice(NUMBERS) * rng.choice((1, -1))).encode()
            case 4:
                words[at] = rng.choice(TEXTS).encode("utf-8", "surrogateescape")
            case _:
                words[at : at + 1] = words[at : at + rng.choice((2, 20, 200))] * 2
    return b"".join(words) if rng.random() < 0.8 else mutate_bytes(b"".join(words), rng)


def mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """Change some fields of tags of a TIFF, or the beginning of a piece of its pixels."""
    content = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    count_form, value_form, at = ("Q", "Q", 8) if is_big else ("H", "I", 4)
    (at,) = struct.unpack_from(order + value_form, data, at)
    (count,) = struct.unpack_from(order + count_form, data, at)
    first, size = at + struct.calcsize(count_form), 20 if is_big else 12
    entries = [first + size * n for n in range(count)]
    if rng.random() < 0.3:
        for entry in entries:
            tag, _, n = struct.unpack_from(order + "HH" + value_form, data, entry)
            if tag in (273, 324):  # offsets of strips or tiles
                (piece,) = struct.unpack_from(order + value_form, data, entry + size // 2 + 2)
                if n > 1:
                    (piece,) = struct.unpack_from(order + value_form, data, piece)
                end = min(len(data), piece + rng.choice((32, 64, 1000)))
                content[piece:end] = mutate_bytes(data[piece:end], rng)[: end - piece]
        return bytes(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        number_at = rng.choice((4, size // 2 + 2, size // 2 + 2))
        field, form = rng.choice(((0, "H"), (2, "H"), *[(number_at, value_form)] * 4))
        number = rng.choice([*NUMBERS, rng.randrange(len(data)), rng.randrange(40_000)])
        number %= 1 << (8 * struct.calcsize(order + form))
        struct.pack_into(order + form, content, rng.choice(entries) + field, number)
    return bytes(content)


def mutate_dicom(data: bytes, rng: random.Random) -> bytes:
    """Change elements of a DICOM file with explicit types."""
    elements, at = [], 132
    while at + 8 <= len(data):
        has_long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        form, length_at = ("<I", at + 8) if has_long else ("<H", at + 6)
        (length,) = struct.unpack_from(form, data, length_at)
        start = length_at + struct.calcsize(form)
        elements.append((at, form, length_at, start, length))
        at = start + length
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, form, length_at, start, length = rng.choice(elements)
        match rng.randrange(5):
            case 0:
                number = rng.choice([*NUMBERS, length + 2]) % (1 << (8 * struct.calcsize(form)))
                struct.pack_into(form, content, length_at, number)
            case 1:
                content[at + 4 : at + 6] = rng.choice((b"OB", b"SQ", b"UN", b"IS", b"US", b"??"))
            case 2 if length <= 8:
                content[start : start + length] = rng.randbytes(length)
            case 3:
                content[at + rng.randrange(4)] = rng.randrange(256)
            case _:
                value = mutate_bytes(data[start : start + min(length, 64)], rng)[:length]
                content[start : start + len(value)] = value
    return bytes(content)


def mutate_matlab(data: bytes, rng: random.Random) -> bytes:
    """Damage an uncompressed MATLAB file of version 5; then compress its variables, or not."""
    variables, at = [], 128
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        variables.append(data[at : at + 8 + length])
        at += 8 + length
    which = rng.randrange(len(variables))
    variables[which] = mutate_bytes(variables[which], rng)
    if rng.random() < 0.5:
        packed = [zlib.compress(each) for each in variables]
        variables = [struct.pack("<II", 15, len(each)) + each for each in packed]
    return data[:128] + b"".join(variables)


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change operations of a pickle, or insert some that ask for memory."""
    positions = [position for _, _, position in pickletools.genops(data) if position is not None]
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(positions)
        number = rng.choice([*NUMBERS, 2**40, 2**63 - 1])
        match rng.randrange(4):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                form = rng.choice(("<I", "<H", "<B"))
                value = struct.pack(form, number % (1 << (8 * struct.calcsize(form))))
                content[at + 1 : at + 1 + len(value)] = value
            case 2:  # LONG_BINPUT, BINBYTES, BINUNICODE; BINBYTES8, FRAME
                operation = rng.choice((b"r", b"B", b"X"))
                long = rng.choice((b"\x8e", b"\x95")) + struct.pack("<Q", number)
                content[at:at] = rng.choice((operation + struct.pack("<I", number % 2**32), long))
            case _:
                end = at + rng.choice((1, 8, 64))
                content[at:at] = content[at:end] * rng.choice((1, 100))
    return bytes(content)


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Damage, remove or repeat lines."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines[at] *= 2
        case 2:
            lines[at] = rng.choice(
                (b"{}\n", b"3\n", b"\n", b"\0" * 50 + b"\n", b"[" * 5000 + b"\n")
            )
        case _:
            lines[at] = mutate_bytes(lines[at], rng)
    return b"".join(lines)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk of a PNG and correct its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    n = rng.randrange(len(chunks))
    name, content = chunks[n]
    match rng.randrange(5):
        case 0:
            chunks.insert(n, (rng.choice((b"iCCP", b"tEXt", b"gAMA", b"PLTE", b"tRNS")), content))
        case 1:
            del chunks[n]
        case 2 if name == b"IHDR":
            size = struct.pack(">II", rng.choice(NUMBERS) % 2**31, rng.choice(NUMBERS) % 2**31)
            chunks[n] = name, size + content[8:]
        case 3:
            chunks.append(chunks[n])
        case _:
            chunks[n] = name, mutate_bytes(content, rng)
    made = data[:8]
    for name, content in chunks:
        crc = zlib.crc32(name + content)
        made += struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)
    return made


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change what a zip contains, or pack it otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    name, content = members[0]
    match rng.randrange(6):
        case 0:
            members = []
        case 1:
            name = rng.choice(["a/" + name, "../" + name, *TEXTS]).replace("\0", "")
        case 2:
            members.append(("other\x1b[1m.json", content))
        case 3:
            content += rng.choice((b" ", b"a", b"0")) * rng.choice((10, 10**6, 3 * 10**7))
        case _:
            content = mutate_json(content, rng)
    members[:1] = [(name, content)] if members else []
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            member = zipfile.ZipInfo(
                name.encode("utf-8", "replace").decode() or "x"
            )  # without the time
            member.compress_type = how
            archive.writestr(member, content, compresslevel=1)
    return file.getvalue()


def mutate_gzip(data: bytes, rng: random.Random) -> bytes:
    """Change what a gzip file contains."""
    content = mutate_json(gzip.decompress(data), rng)
    return gzip.compress(content + b" " * rng.choice((0, 0, 3 * 10**7)), 1, mtime=0)


def mutate_npy(data: bytes, rng: random.Random) -> bytes:
    """Change the header of an array file."""
    (length,) = struct.unpack_from("<H", data, 8)
    header = ast.literal_eval(data[10 : 10 + length].decode())
    key = rng.choice(list(header))
    shapes = [(), (-1, 4), (2**31, 2**31), (60,), (1, 60, 70), ("a", 3)]
    types = ["|O", "<f8", "<c16", "<U5", ">i2", "V9", "x", [("a", "<i4")]]
    others: dict[str, list[Any]] = {"shape": shapes, "descr": types}
    header[key] = rng.choice(others.get(key, [True, None, 3]))
    text = repr(header).encode()
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + length :]


def mutate_torch(data: bytes, rng: random.Random) -> bytes:
    """Change a value of a checkpoint, or operations of the pickle in it."""
    import torch

    if rng.random() < 0.25:
        return _repacked(data, rng)
    state = torch.load(io.BytesIO(data), weights_only=True)
    part = state
    for _ in range(8):
        key = rng.choice(list(part) if isinstance(part, dict) else list(range(len(part))))
        inner = part[key]
        if not (isinstance(inner, dict | list) and len(inner)) or rng.random() < 0.15:
            break
        part = inner
    if isinstance(inner, torch.Tensor) and rng.random() < 0.7:
        inner = inner.detach().clone()
        others: list[Any] = [inner.reshape(-1)[:1], inner.double() * float("nan"), inner.int()]
        part[key] = rng.choice([*others, inner * 1e30, inner.expand(3, *inner.shape)])
    elif rng.random() < 0.15 and isinstance(part, dict):
        del part[key]
    else:
        part[key] = rng.choice([v for v in VALUES if v != "caf\udce9"])
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _repacked(data: bytes, rng: random.Random) -> bytes:
    """Mutate the pickle of a checkpoint, and give it its sum again."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w") as made:
        for member in archive.infolist():
            content = archive.read(member)
            if member.filename.endswith("/data.pkl"):
                content = mutate_pickle(content, rng)
            made.writestr(zipfile.ZipInfo(member.filename), content)
    return file.getvalue()


def either(structured: Mutation, share: float = 0.6) -> Mutation:
    """Return a mutation that is structured or of bytes."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        return (structured if rng.random() < share else mutate_bytes)(data, rng)

    return mutate
