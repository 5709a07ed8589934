"""Small valid files, and ways to damage them."""

import functools
import io
import random
import re
import struct

import numpy as np
import soundfile

SUBTYPES = ("PCM_16", "FLOAT", "VORBIS", "OPUS", "MPEG_LAYER_III", "PCM_S8", "PCM_U8", "DPCM_16", "ULAW", "MS_ADPCM")
EXTREMES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, -1)


@functools.cache
def valid_files() -> dict[str, bytes]:
    """Returns files of 0.1 s of sound by name, in every container and some codecs that libsndfile writes."""
    return _files(1_600)


@functools.cache
def long_files() -> dict[str, bytes]:
    """Returns `valid_files` with 0.6 s of sound and without raw files, so that a change of 0.1 s is noticed."""
    return {name: content for name, content in _files(9_600).items() if not name.startswith("raw")}


def with_other_length(content: bytes, rng: random.Random) -> bytes:
    """Returns a file with a wrong or unknown length, of its samples or of the whole, in its header."""
    size = len(content)
    lengths = {9_600 * width + more for width in (1, 2, 3, 4, 6, 8, 12, 16) for more in (0, 4, 8, 24)}
    lengths |= {size, size - 8}
    places = []
    for place in range(min(size, 600)):
        for width, order in ((4, "little"), (4, "big"), (8, "little"), (8, "big")):
            number = int.from_bytes(content[place : place + width], order)
            if number in lengths:
                places.append((place, width, order, number))
    if not places:
        return content
    place, width, order, number = rng.choice(places)
    number = rng.choice((0, 2 ** (8 * width) - 1, number // 2, number * 2, number + 2**31)) % 2 ** (8 * width)
    return content[:place] + number.to_bytes(width, order) + content[place + width :]


def _files(length: int) -> dict[str, bytes]:
    samples = np.random.default_rng(0).normal(scale=0.1, size=(length, 2))
    files = {}
    for container in soundfile.available_formats():
        for subtype in SUBTYPES:
            if container == "SD2" or subtype not in soundfile.available_subtypes(container):
                continue  # SD2 writes a second file, which needs a folder
            for channels in (1, 2):
                file = io.BytesIO()
                try:
                    soundfile.write(file, samples[:, :channels], 16_000, format=container, subtype=subtype)
                except soundfile.LibsndfileError:  # one channel only, or written to disk only
                    continue
                files[f"{container.lower()}-{subtype.lower()}-{channels}"] = _timeless(file.getvalue())
    return files


def _timeless(content: bytes) -> bytes:
    """Replaces what differs each time that a file is written: the time, and the number of its stream."""
    content = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", b"2000-01-01 00:00:00 UTC", content)
    changed = bytearray(content)
    if (place := content.find(b"PEAK")) >= 0:
        changed[place + 12 : place + 16] = bytes(4)
    place = content.find(b"OggS")
    while place >= 0:
        changed[place + 14 : place + 18] = b"\1\0\0\0"
        place = content.find(b"OggS", place + 1)
    return with_ogg_checksums(bytes(changed))


def audio_file(rng: random.Random) -> tuple[str, bytes]:
    """Returns the name and content of a file, usually of one of four common formats, and rarely undamaged."""
    files = valid_files()
    usual = [name for name in files if name.startswith(("wav-", "flac-", "ogg-", "mp3-"))]
    name = rng.choice(usual if rng.random() < 0.75 else list(files))
    content = files[name]
    if rng.random() < 0.95:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            content = rng.choice(_AUDIO_MUTATIONS)(content, rng)
        if name.startswith("ogg") and rng.random() < 0.7:
            content = with_ogg_checksums(content)
    suffix = rng.choice((name.partition("-")[0], name.partition("-")[0], "wav", "mp3", "raw", "m4a"))
    return f"clip.{suffix}", content


def broken(content: bytes, rng: random.Random) -> bytes:
    """Damages any file in random places, regardless of its format."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(_MUTATIONS)(content, rng)
    return content


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if changed:
            changed[_place(changed, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _extreme(content: bytes, rng: random.Random) -> bytes:
    """Replaces a number of 1 to 8 bytes by one at a limit of the range of such numbers."""
    size = rng.choice((1, 2, 4, 4, 8))
    number = rng.choice(EXTREMES) % 2 ** (8 * size)
    place = _place(content, rng)
    return content[:place] + number.to_bytes(size, rng.choice(("little", "big"))) + content[place + size :]


def _remove(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + rng.choice((1, 4, 8, 100)) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    length = rng.choice((1, 4, 8, 1_000, 100_000))
    filling = rng.choice(
        (bytes(length), b"\xff" * length, rng.randbytes(length), (b"JUNK" + bytes(4)) * (length // 8))
    )
    return content[:place] + filling + content[place:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted((_place(content, rng), _place(content, rng)))
    return content[:end] + content[start:end] * rng.choice((1, 2, 50)) + content[end:]


def _exchange(content: bytes, rng: random.Random) -> bytes:
    first, second, third = sorted(_place(content, rng) for _ in range(3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    other = rng.choice(list(valid_files().values()))
    return content[: _place(content, rng)] + other[_place(other, rng) :]


def _huge(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.9:
        return _extreme(content, rng)
    place = _place(content, rng)
    return content[:place] + rng.choice((bytes(8), b"JUNK\0\0\0\0", b"\xff\xfb\x90\x00")) * 2**21 + content[place:]


def _not_numbers(content: bytes, rng: random.Random) -> bytes:
    value = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 1e38)))
    place = rng.randrange(len(content) + 1) & ~3
    return content[:place] + value * rng.choice((1, 100)) + content[place + 4 :]


def _riff(content: bytes, rng: random.Random) -> bytes:
    """Reorders, repeats or removes chunks of a RIFF file, or changes a field of its format."""
    if content[:4] != b"RIFF":
        return _extreme(content, rng)
    chunks, place = [], 12
    while place + 8 <= len(content) and len(chunks) < 100:
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        chunks.append(bytearray(content[place : place + 8 + length]))
        place += 8 + length + length % 2
    change = rng.choice(("shuffle", "repeat", "leave out", "format", "format"))
    if change == "shuffle":
        rng.shuffle(chunks)
    elif change == "repeat" and chunks:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    elif change == "leave out" and chunks:
        chunks.pop(rng.randrange(len(chunks)))
    for chunk in chunks:
        if change == "format" and chunk[:4] == b"fmt " and len(chunk) >= 24:
            form, at = rng.choice((("<H", 8), ("<H", 10), ("<I", 12), ("<I", 16), ("<H", 20), ("<H", 22)))
            values = (
                0,
                1,
                2,
                3,
                16,
                32,
                64,
                255,
                1_024,
                1_025,
                999,
                1_000,
                8_000,
                65_535,
                4_000_000,
                2**31,
                2**32 - 1,
            )
            struct.pack_into(form, chunk, at, rng.choice(values) % 2 ** (8 * struct.calcsize(form)))
    return content[:12] + b"".join(chunks)


def _flac(content: bytes, rng: random.Random) -> bytes:
    """Changes the rate, channels, width or length in the STREAMINFO of a FLAC file."""
    if content[:4] != b"fLaC" or len(content) < 26:
        return _extreme(content, rng)
    fields = int.from_bytes(content[18:26], "big")
    shift, width = rng.choice(((44, 20), (41, 3), (36, 5), (0, 36)))
    fields = fields & ~((2**width - 1) << shift) | rng.randrange(2**width) << shift
    return content[:18] + fields.to_bytes(8, "big") + content[26:]


def _place(content: bytes | bytearray, rng: random.Random) -> int:
    """Returns a random place in the content, two times out of three in its first 128 bytes."""
    return rng.randrange(min(len(content), 128) + 1 if rng.random() < 0.67 else len(content) + 1) - bool(content)


_MUTATIONS = (_cut, _flip, _extreme, _remove, _insert, _repeat, _exchange)
_AUDIO_MUTATIONS = (*_MUTATIONS, _splice, _huge, _not_numbers, _riff, _riff, _flac, _extreme)


def with_ogg_checksums(content: bytes) -> bytes:
    """Corrects the checksums of the pages of an Ogg file, so that damaged pages are read."""
    changed = bytearray(content)
    place = changed.find(b"OggS")
    while place >= 0 and place + 27 <= len(changed):
        n_segments = changed[place + 26]
        end = place + 27 + n_segments + sum(changed[place + 27 : place + 27 + n_segments])
        changed[place + 22 : place + 26] = bytes(4)
        changed[place + 22 : place + 26] = _ogg_checksum(changed[place:end]).to_bytes(4, "little")
        place = changed.find(b"OggS", place + 27)
    return bytes(changed)


def _ogg_checksum(page: bytes | bytearray) -> int:
    table, value = _ogg_table(), 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ table[value >> 24 ^ byte]
    return value


@functools.cache
def _ogg_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table
