"""Tests reading audio: resampling, limits, damaged files, containers, sample formats and error messages."""

import base64
import io
import os
import struct
import sys
import time

import av
import librosa
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

import audio_maxmvit
import onnx_ser
from audio_maxmvit import AUDIO_SUFFIXES, AudioError, read_audio, stream_audio
from tests.helpers.clips import media_file


def wav(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=length).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    rates=st.tuples(*[st.sampled_from([1_000, 7_919, 8_000, 11_025, 16_001, 44_099, 44_100, 48_000, 192_000])] * 2),
    length=st.integers(1, 20_000),
    block=st.sampled_from([1, 2, 7, 100, 4_096, 10**6]),
    seed=st.integers(0, 99),
)
def test_resampling_in_blocks_equals_resampling_the_whole(rates, length, block, seed):
    rate, target = rates
    clip = noise(min(length, 300 * block), seed)
    whole = soxr.resample(clip, rate, target) if rate != target else clip
    pieces = (clip[start : start + block] for start in range(0, len(clip), block))
    resampled = np.concatenate(list(audio_maxmvit._resampled(pieces, rate, target)))
    assert len(resampled) == -(-len(clip) * target // rate)  # librosa rounds up; soxr rounds to the nearest number
    np.testing.assert_array_equal(resampled[: len(whole)], whole)
    assert not resampled[len(whole) :].any()


@pytest.mark.slow
def test_a_file_read_in_blocks_equals_librosa_on_the_whole_file(monkeypatch):
    clip = noise(round(7.3 * 11_025))
    monkeypatch.setattr(audio_maxmvit, "BLOCK_VALUES", 12_345)
    assert len(list(stream_audio(wav(clip, 11_025), 11_025))) == 7
    whole = librosa.resample(clip, orig_sr=11_025, target_sr=16_000, res_type="soxr_hq")
    np.testing.assert_array_equal(read_audio(wav(clip, 11_025), 16_000), whole)


def test_a_clip_of_one_sample_is_never_resampled_to_nothing():
    assert len(read_audio(wav(noise(1), 192_000), 16_000)) == 1


@pytest.mark.parametrize("rate", [1, 999, 4_000_001, 2**31 - 1])
def test_an_implausible_sampling_rate_is_refused(rate):
    content = bytearray(wav(noise(500), 8_000))
    content[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(
        AudioError, match=f"sampling rate {rate}; it must be a whole number from 1,000 to 4,000,000 Hz"
    ):
        read_audio(bytes(content), 44_100)
    with pytest.raises(AudioError, match=f"sampling rate {rate}; it must be"):
        read_audio({"array": noise(500), "sampling_rate": rate}, 44_100)


@pytest.mark.parametrize("filler", [bytes(8), b"JUNK\0\0\0\0"])
@pytest.mark.parametrize("kind", [b"RIFF", b"FORM"])
def test_an_endless_header_is_refused_quickly(kind, filler):
    form = b"WAVE" if kind == b"RIFF" else b"AIFF"
    content = kind + b"\x00\x00\x40\x01" + form + filler * (20 * 2**20 // 8)
    start = time.monotonic()
    with pytest.raises(AudioError, match=r"cannot be decoded \(over 1,000 chunks and no samples\)"):
        read_audio(content, 44_100)
    assert time.monotonic() - start < 0.5


@pytest.mark.slow
def test_the_maximum_length_applies_to_the_decoded_audio(tmp_path):
    """A small FLAC file of silence is long when decoded."""
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(11):
            file.write(np.zeros(60 * 16_000, np.int16))
    assert path.stat().st_size < 100_000
    with pytest.raises(AudioError, match="bomb.flac lasts longer than 600 s, which is the limit"):
        read_audio(path, 16_000)
    assert len(read_audio(path, 16_000, max_s=660)) == len(read_audio(path, 16_000, max_s=None)) == 660 * 16_000
    assert sum(map(len, stream_audio(path, 16_000))) == 660 * 16_000


def test_a_broken_file_is_refused_without_output_or_warnings_of_a_library(capfd, recwarn):
    file = io.BytesIO()
    soundfile.write(file, noise(800), 8_000, format="AIFF", subtype="PCM_16")
    with pytest.raises(AudioError, match="cannot be decoded"):  # libsndfile seeks the samples at position -1
        read_audio(file.getvalue().replace(b"SSND", b"SND\0"), 8_000)
    loud = np.array([[np.inf, -np.inf]] * 10, np.float32)
    with pytest.raises(AudioError, match="holds NaN or infinite"):
        read_audio(wav(loud, 8_000), 8_000)
    assert capfd.readouterr().err == ""
    assert not recwarn.list


def test_the_file_name_does_not_decide_the_format(tmp_path):
    (tmp_path / "voice.raw").write_bytes(wav(noise(800), 8_000))
    assert len(read_audio(tmp_path / "voice.raw", 8_000)) == 800


def test_many_channels_take_no_more_memory_than_one(monkeypatch):
    monkeypatch.setattr(audio_maxmvit, "BLOCK_VALUES", 8_000)
    clip = np.repeat(noise(1_000)[:, None], 200, axis=1)
    pieces = list(stream_audio(wav(clip, 8_000), 8_000))
    assert max(map(len, pieces)) == 40
    np.testing.assert_allclose(np.concatenate(pieces), clip[:, 0], atol=1e-6)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "voice.wav")
    with pytest.raises(AudioError, match="voice.wav is a device or a pipe"):
        read_audio(tmp_path / "voice.wav", 16_000)
    with pytest.raises(AudioError, match="/dev/zero is a device"):
        read_audio("/dev/zero", 16_000)


# Damaged and unusual files: read completely or refused

NO_LENGTH = {"IRCAM", "PAF", "PVF", "XI"}  # containers without a length in the header, which are read to their end
SUBTYPES = ("PCM_16", "FLOAT", "ULAW", "MS_ADPCM", "GSM610", "ALAC_16", "G721_32", "VORBIS", "OPUS", "MPEG_LAYER_III")


def containers() -> list[tuple[str, str]]:
    pairs = [(container, subtype) for container in soundfile.available_formats() for subtype in SUBTYPES]
    pairs = [pair for pair in pairs if soundfile.check_format(*pair) and pair[0] not in ("RAW", "SD2")]
    return [pair for pair in pairs if pair != ("WAV", "MPEG_LAYER_III")]  # which libsndfile cannot write


def encoded(container: str, subtype: str = "PCM_16", length: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    samples = np.stack([noise(length, seed) for seed in range(channels)], axis=1)
    soundfile.write(file, samples, 16_000, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("container", "subtype"), containers())
def test_truncated_and_extended_files_of_any_container_are_refused(container, subtype):
    content = encoded(container, subtype)
    whole = read_audio(content, 16_000)
    for number, damaged in enumerate(
        [
            content[: len(content) * 6 // 10],
            content + content,
            content + encoded(container, subtype, 12_000),
            content + np.random.default_rng(1).bytes(3_001),
        ]
    ):
        if container in NO_LENGTH and number == 0:
            continue  # the file does not show that the rest is missing
        try:
            samples = read_audio(damaged, 16_000)
        except AudioError as error:
            assert len(str(error)) > 40 and str(error).endswith(".")
        else:
            assert container in NO_LENGTH and len(samples) > len(whole)
            np.testing.assert_array_equal(samples[: len(whole)], whole)


def damages(content: bytes) -> dict[str, bytes]:
    """Returns copies of a file that are damaged in the middle, by the kind of the damage."""
    middle, rng = len(content) // 2, np.random.default_rng(3)
    before = lambda length: content[: middle - length // 2]  # noqa: E731
    after = lambda length: content[middle - length // 2 + length :]  # noqa: E731
    return {
        "a flipped bit": before(1) + bytes([content[middle] ^ 16]) + after(1),
        "300 zeros": before(300) + bytes(300) + after(300),
        "an overwritten sector": before(4_096) + rng.bytes(4_096) + after(4_096),
        "inserted bytes": before(0) + rng.bytes(700) + after(0),
        "removed bytes": before(2_500) + after(2_500),
    }


def voice(container: str, subtype: str) -> bytes:
    """Returns a file of six seconds of sound whose level rises and falls."""
    time = np.arange(6 * 48_000) / 48_000
    file = io.BytesIO()
    sound = np.sin(2 * np.pi * 300 * time) * np.sin(time) ** 2 * 0.3 + noise(len(time)) * 0.1
    soundfile.write(file, sound.astype(np.float32), 48_000, format=container, subtype=subtype)
    return file.getvalue()


COMPRESSED = {
    "ogg": voice("OGG", "VORBIS"), "opus": voice("OGG", "OPUS"), "flac": voice("FLAC", "PCM_16"),
    "mp3": voice("MP3", "MPEG_LAYER_III"), "webm": media_file("webm", "libopus", 48_000, seconds=6.0)[0],
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_file_damaged_in_the_middle_is_refused(kind):
    content = COMPRESSED[kind]
    whole = read_audio(content, 48_000)
    refused = []
    for damage, damaged in damages(content).items():
        try:
            samples = read_audio(damaged, 48_000)
        except AudioError as error:
            assert len(str(error)) > 40 and str(error).endswith(".")
            refused.append(damage)
        else:  # without a checksum, changed bits cannot be detected
            assert kind in ("mp3", "webm") and abs(len(samples) - len(whole)) <= 0.1 * 48_000
    assert {"an overwritten sector", "removed bytes"} <= {*refused}
    if kind not in ("mp3", "webm"):
        assert len(refused) == 5


def test_the_checksums_of_ogg_pages_equal_those_in_the_file():
    for kind in ("ogg", "opus"):
        content = COMPRESSED[kind]
        starts = [place for place in range(len(content)) if content[place : place + 5] == b"OggS\0"]
        pages = [content[first:last] for first, last in zip(starts, [*starts[1:], len(content)], strict=True)]
        assert len(pages) >= 5
        assert [audio_maxmvit._ogg_checksum(page) for page in pages] == [page[22:26] for page in pages]


def test_a_browser_recording_that_ended_early_is_read():
    content = COMPRESSED["webm"]
    head = content.index(b"\x18\x53\x80\x67") + 4
    unknown = content[:head] + b"\x01" + b"\xff" * 7 + content[head + 8 :]  # as browsers write the length
    for end in (len(unknown), unknown.rindex(b"\x1c\x53\xbb\x6b"), len(unknown) * 2 // 3):
        assert len(read_audio(unknown[:end], 48_000)) > 3 * 48_000
    damaged = damages(unknown)["an overwritten sector"]
    with pytest.raises(AudioError, match="is damaged at byte"):
        read_audio(damaged, 48_000)


@pytest.mark.parametrize("short", [1, 2, 43, 44])
@pytest.mark.parametrize("container", ["WAV", "AIFF", "W64", "RF64", "AU", "NIST", "CAF"])
def test_a_file_that_lacks_a_few_bytes_is_read(container, short):
    content = encoded(container)
    whole, samples = read_audio(content, 16_000), read_audio(content[:-short], 16_000)
    assert len(whole) - 30 <= len(samples) < len(whole)
    np.testing.assert_array_equal(samples, whole[: len(samples)])


def with_length(container: str, length: int) -> bytes:
    """Returns a file whose header gives this length of the samples, in bytes; for FLAC, their number."""
    content = encoded(container)
    place, form = {
        "WAV": (content.find(b"data") + 4, "<I"), "AIFF": (content.find(b"SSND") + 4, ">I"), "RF64": (28, "<Q"),
        "W64": (content.find(b"data") + 16, "<Q"), "AU": (8, ">I"), "CAF": (content.find(b"data") + 4, ">Q"),
        "FLAC": (18, ">Q"),
    }[container]  # fmt: skip
    length %= 2 ** (8 * struct.calcsize(form))
    if container == "FLAC":
        length |= int.from_bytes(content[18:26], "big") >> 36 << 36
    return content[:place] + struct.pack(form, length) + content[place + struct.calcsize(form) :]


@pytest.mark.parametrize(
    ("container", "length"),
    [
        ("WAV", 0), ("WAV", -1), ("WAV", 0x7FFFF000), ("AIFF", 0), ("AIFF", 8), ("AIFF", -1), ("RF64", 0),
        ("RF64", -1), ("W64", 0), ("W64", 24), ("W64", -1), ("AU", 0), ("AU", -1), ("CAF", -1), ("FLAC", 0),
    ],
)  # fmt: skip
def test_a_file_without_a_known_length_is_read_to_its_end(container, length):
    np.testing.assert_array_equal(
        read_audio(with_length(container, length), 16_000), read_audio(encoded(container), 16_000)
    )


@pytest.mark.parametrize("container", ["WAV", "AIFF", "RF64", "W64", "AU", "CAF"])
@pytest.mark.parametrize("length", [9_000, 16_000, 31_990 - 2**32, 2**20])
def test_a_file_with_a_wrong_length_in_its_header_is_refused(container, length):
    with pytest.raises(AudioError, match="holds more than would be read|is cut off"):
        read_audio(with_length(container, length), 16_000)


@pytest.mark.parametrize("length", [8_000, 15_999, 32_000])
def test_a_flac_with_a_wrong_number_of_samples_in_its_header_is_refused(length):
    with pytest.raises(AudioError, match="holds more than would be read|is cut off"):
        read_audio(with_length("FLAC", length), 16_000)


@pytest.mark.parametrize(
    "tail",
    [
        bytes(500), b"TAG" + b"a" * 125, b"ab", b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.29.100\0",
        b"LIST" + struct.pack("<I", 50) + b"INFO", b"id3 " + struct.pack("<I", 3) + b"abc\0" + b"JUNK" + bytes(4),
    ],
)  # fmt: skip
def test_tags_and_padding_after_the_samples_are_skipped(tail):
    content = encoded("WAV", length=999)
    assert len(read_audio(content + tail, 16_000)) == 999
    odd = io.BytesIO()  # 999 bytes of samples, after which RIFF needs a padding byte
    soundfile.write(odd, noise(999), 16_000, format="WAV", subtype="PCM_U8")
    assert len(read_audio(odd.getvalue() + tail, 16_000)) == 999
    if tail[:4] == b"LIST":
        assert len(read_audio(odd.getvalue()[:-1] + tail, 16_000)) == 999  # some writers omit the padding byte


def test_a_wav_with_two_data_chunks_is_refused():
    content = encoded("WAV")
    with pytest.raises(AudioError, match="a second run of samples follows the first"):
        read_audio(content + content[36:], 16_000)


def test_concatenated_mp3_files_are_refused():
    first, second = encoded("MP3", "MPEG_LAYER_III"), io.BytesIO()
    soundfile.write(second, noise(8_000), 8_000, format="MP3", subtype="MPEG_LAYER_III")
    tagged = b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + second.getvalue()
    for joined in (first + second.getvalue(), first + tagged, tagged + first):
        with pytest.raises(AudioError, match="a second stream begins at byte"):
            read_audio(joined, 16_000)
    assert len(read_audio(tagged, 8_000)) == 8_000
    assert len(read_audio(tagged + b"TAG" + bytes(125), 8_000)) == 8_000


# Files from phones and cameras

MEDIA = [
    ("ipod", "aac", 16_000, 1), ("mp4", "aac", 44_100, 2), ("3gp", "amr_nb", 8_000, 1), ("amr", "amr_nb", 8_000, 1),
    ("webm", "libopus", 48_000, 2), ("matroska", "libopus", 24_000, 1), ("asf", "wmav2", 44_100, 2),
    ("mov", "pcm_s16le", 16_000, 2), ("mov", "alac", 44_100, 1), ("adts", "aac", 16_000, 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("container", "codec", "rate", "channels"), MEDIA)
def test_media_files_are_read_completely_or_refused(container, codec, rate, channels, monkeypatch, capfd):
    content, sweep = media_file(container, codec, rate, channels)
    monkeypatch.setattr(audio_maxmvit, "BLOCK_S", 0.5)
    pieces = list(stream_audio(content, rate))
    assert len(pieces) >= 3 and max(map(len, pieces)) < 0.7 * rate
    samples = np.concatenate(pieces)
    assert 0 <= len(samples) - len(sweep) + 0.1 * rate <= 0.22 * rate
    delay = {"adts": 1024, "amr": 40}.get(container, 0)  # of the encoder, which these containers do not record
    at = slice(rate // 2, rate)
    found = max(np.corrcoef(sweep[at], np.roll(samples, -delay - n)[at])[0, 1] for n in range(-60, 61))
    assert found > (0.95 if codec == "amr_nb" else 0.999) or container == "asf"
    with pytest.raises(AudioError, match="is cut off|cannot be decoded"):
        read_audio(content[: len(content) // 2], rate)
    if container != "adts":  # a plain sequence of frames, so concatenated files are valid
        with pytest.raises(AudioError, match="a second file begins at byte"):
            read_audio(content + content, rate)
        with pytest.raises(AudioError):
            read_audio(content + np.random.default_rng(0).bytes(3_000), rate)
    with pytest.raises(AudioError, match="lasts longer than 1 s"):
        read_audio(content, rate, max_s=1.0)
    assert capfd.readouterr().err == ""


def test_a_truncated_mp4_with_its_index_first_is_refused():
    content, _ = media_file("mp4", "aac", 16_000, options={"movflags": "faststart"})
    assert len(read_audio(content, 16_000)) >= 32_000
    for fraction in (0.3, 0.5, 0.9, 0.99):
        with pytest.raises(AudioError, match="is cut off"):
            read_audio(content[: round(fraction * len(content))], 16_000)


def test_without_pyav_the_remedy_is_named_and_other_files_are_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for container, codec in (("ipod", "aac"), ("webm", "libopus")):
        with pytest.raises(AudioError, match="PyAV decodes: pip install av"):
            read_audio(MEDIA_FILES[container, codec], 48_000)
    assert len(read_audio(encoded("WAV"), 16_000)) == 16_000


MEDIA_FILES = {pair: media_file(*pair, 48_000, seconds=0.2)[0] for pair in (("ipod", "aac"), ("webm", "libopus"))}


def test_a_media_file_without_audio_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="holds no audio track"):
        read_audio(file.getvalue(), 16_000)
    with pytest.raises(AudioError, match="cannot be decoded"):  # a playlist, whose files FFmpeg would open
        read_audio(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 16_000)


def test_the_audio_suffixes_cover_the_readable_formats():
    assert {".sph", ".w64", ".wave", ".aifc", ".mp2", ".voc", ".m4b", ".webm", ".wav", ".mp3"} <= AUDIO_SUFFIXES
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in AUDIO_SUFFIXES)
    assert onnx_ser.AUDIO_SUFFIXES == AUDIO_SUFFIXES  # a file that imports nothing of the project


# Samples


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32, np.uint16])
def test_integers_of_unknown_full_scale_are_refused(dtype):
    samples = (noise(900) * 2**14 + 2**14).astype(dtype)
    for given_samples in (samples, samples.astype(np.int64).tolist(), np.stack([samples, samples])):
        with pytest.raises(AudioError, match=r"samples, whose full scale is unknown. Give floats in \[-1, 1\]"):
            read_audio({"array": given_samples, "sampling_rate": 16_000}, 16_000)


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24])
def test_int32_that_holds_samples_of_fewer_bits_is_refused(bits):
    clip = noise(2_000) / np.abs(noise(2_000)).max()
    with pytest.raises(AudioError, match="holds int32 samples of at most .* would count as silence"):
        read_audio({"array": (clip * 2 ** (bits - 1)).astype(np.int32), "sampling_rate": 16_000}, 16_000)
    right = read_audio({"array": (clip * (2**31 - 1)).astype(np.int32), "sampling_rate": 16_000}, 16_000)
    np.testing.assert_allclose(right, clip, atol=1e-6)
    assert not read_audio({"array": np.zeros(9, np.int32), "sampling_rate": 16_000}, 16_000).any()


@pytest.mark.parametrize("gain", [1.0, 0.98])
def test_channels_that_cancel_are_refused_and_others_are_not(gain):
    clip = noise(16_000)
    for channels in (np.stack([clip, -gain * clip]), np.stack([clip, -gain * clip] * 2)):
        for source in ({"array": channels, "sampling_rate": 16_000}, wav(channels.T, 16_000)):
            with pytest.raises(AudioError, match="has channels that cancel each other when they are averaged"):
                read_audio(source, 16_000)
    for other in (clip, noise(16_000, 1), -0.5 * clip, 0 * clip):
        np.testing.assert_allclose(read_audio(wav(np.stack([clip, other], 1), 16_000), 16_000), (clip + other) / 2)
    assert len(read_audio(wav(1e-4 * np.stack([clip, -clip], 1), 16_000), 16_000)) == 16_000  # silent in any case


# Messages


def test_text_that_is_not_a_path_is_not_repeated_in_the_error():
    text = base64.b64encode(wav(noise(9_000), 16_000)).decode()
    for given_text in (text, "data:audio/wav;base64," + text, "data:audio/mp3;base64,//uQx"):
        with pytest.raises(AudioError, match=r"decode base64 text first, base64.b64decode\(text\)") as caught:
            read_audio(given_text, 16_000)
        assert len(str(caught.value)) < 300
    with pytest.raises(AudioError, match="a/b.wav cannot be read: No such file"):
        read_audio("a/b.wav", 16_000)
    for pair in ((48_000, noise(9)), [noise(9), 48_000]):
        with pytest.raises(AudioError, match='give one as {"array"'):
            read_audio(pair, 16_000)
