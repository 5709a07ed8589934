"""The built-in demo corpus: emotional pseudo-speech, synthesised with numpy and scipy alone.

It uses a source and a filter (Fant 1960; Klatt 1980): glottal pulses and breath noise excite a cascade of formant
resonators, which move through a random string of consonant-vowel syllables. The voice determines the mean pitch, the
length of the vocal tract, the breathiness and the habitual rate; the emotion shifts prosody relative to that voice. No
single cue determines the emotion of a new voice: each varies by voice and by clip, and overlaps between emotions.

Each clip also has an arousal, which increases with the level and the range of its pitch, its loudness and its rate,
and a valence, which is higher if the pitch rises, and lower if the source has a flat or steep tilt.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from scipy.io import wavfile
from scipy.signal import lfilter

from ser.data.corpora.readers import visible_files
from ser.data.corpora.records import Record
from ser.utils import DataError

# ---- Synthesis ----

EMOTIONS = ("neutral", "happy", "angry", "sad")
SAMPLING_RATE = 44_100
FRAME = 512  # samples from one value of a control track to the next: 11.6 ms
MANIFEST = "demo_corpus.json"
VERSION = 3  # raise it whenever the samples change, so that a folder made by older code is not reused


@dataclass(frozen=True)
class Prosody:
    """The prosody of an emotion relative to that of the voice, following Scherer (2003) and Juslin & Laukka (2003).

    Args:
        level: mean pitch relative to the voice's own, in semitones.
        spread: standard deviation of the syllables' pitch accents, in semitones.
        slope: pitch change from the first to the last syllable, in semitones.
        rate: speaking rate as a factor of the voice's own.
        loudness: peak of the clip in dB relative to full scale (removed by features that are normalised per clip).
        tilt: attenuation of the glottal source at 3 kHz in dB; low for loud, tense speech.
        open_quotient: share of a glottal cycle in which the vocal folds are open; low for tense speech.
        jitter: relative standard deviation of the cycle length.
        breath: gain of the aspiration noise as a factor of the voice's own.
        stress: standard deviation of the syllables' level in dB.
        smile: formant shift from the lips: spread above 1, slack below.
    """

    level: float
    spread: float
    slope: float
    rate: float
    loudness: float
    tilt: float
    open_quotient: float
    jitter: float
    breath: float
    stress: float
    smile: float


PROSODY = {
    "neutral": Prosody(0.0, 1.0, -1.5, 1.00, -12.0, 8.0, 0.60, 0.006, 1.0, 1.5, 1.00),
    "happy": Prosody(6.0, 3.2, 3.0, 1.12, -8.0, 6.0, 0.58, 0.006, 1.2, 2.0, 1.06),
    "angry": Prosody(2.5, 2.0, -5.0, 1.25, -4.0, 0.0, 0.40, 0.025, 0.5, 4.5, 1.00),
    "sad": Prosody(-1.5, 0.6, -2.5, 0.74, -16.0, 16.0, 0.74, 0.012, 2.5, 1.0, 0.97),
}
# First three formants of a man's vowels in Hz (rounded from Peterson & Barney 1952).
VOWELS = np.array([(270, 2290, 3010), (530, 1840, 2480), (730, 1090, 2440), (570, 840, 2410), (300, 870, 2240)], float)
UPPER_FORMANTS = (3500.0, 4500.0, 5500.0, 6500.0, 7500.0, 8500.0)  # a uniform tube's, whatever the vowel
UPPER_BANDWIDTHS = (200.0, 250.0, 300.0, 400.0, 500.0, 600.0)


@dataclass(frozen=True)
class Consonant:
    """A consonant: its initial formants (Hz), voicing (1 for a vowel), noise (level, Hz) and duration (s)."""

    locus: tuple[float, float, float]
    voicing: float
    noise: float
    noise_frequency: float
    duration: float
    burst: bool = False  # whether the noise is only at the release, after silence


CONSONANTS = (
    Consonant((220, 850, 2200), 0.15, 0.3, 900, 0.06, burst=True),  # b
    Consonant((220, 1750, 2650), 0.15, 0.3, 3800, 0.06, burst=True),  # d
    Consonant((260, 1750, 2600), 0.0, 0.7, 4200, 0.09, burst=True),  # t
    Consonant((260, 2000, 2300), 0.0, 0.7, 2000, 0.09, burst=True),  # k
    Consonant((280, 1700, 2600), 0.0, 0.8, 6800, 0.11),  # s
    Consonant((280, 1900, 2500), 0.0, 0.8, 3200, 0.11),  # sh
    Consonant((280, 1000, 2200), 0.40, 0.0, 1000, 0.07),  # m
    Consonant((280, 1650, 2500), 0.40, 0.0, 1000, 0.07),  # n
    Consonant((360, 1250, 2750), 0.60, 0.0, 1000, 0.06),  # l
)


@dataclass(frozen=True)
class Voice:
    """Properties of a speaker that do not depend on the emotion.

    Args:
        f0: habitual pitch in Hz, 160 to 230 for women and 90 to 140 for men.
        tract_length: in cm; formants scale with 17.5 over it.
        breath: level of the aspiration noise.
        rate: habitual syllables per second.
        tilt: habitual extra attenuation of the source at 3 kHz in dB.
        expression: factor by which this speaker's emotions differ from neutral speech.
    """

    f0: float
    tract_length: float
    breath: float
    rate: float
    tilt: float
    expression: float


def _generator(seed: int, *key: int) -> np.random.Generator:
    # Spawn keys, since SeedSequence pads plain entropy with zeros: [seed, voice] would equal [seed, voice, 0, 0].
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def make_voice(voice: int, seed: int = 0) -> Voice:
    """Returns speaker number `voice`; women have even numbers, men odd ones."""
    rng = _generator(seed, voice)
    female = voice % 2 == 0
    return Voice(
        f0=rng.uniform(160, 230) if female else rng.uniform(90, 140),
        tract_length=rng.uniform(14.0, 15.5) if female else rng.uniform(16.2, 18.0),
        breath=rng.uniform(0.003, 0.009) * (1.5 if female else 1.0),
        rate=rng.uniform(4.2, 5.0),
        tilt=rng.uniform(-2.0, 2.0),
        expression=rng.uniform(0.9, 1.2),
    )


def _clip_prosody(emotion: str, expression: float, rng: np.random.Generator) -> Prosody:
    """Returns the prosody of a clip: the emotion's difference from neutral, scaled, with random variation per cue."""
    neutral, target = PROSODY["neutral"], PROSODY[emotion]
    strength = expression * rng.uniform(0.85, 1.15)
    cues = {name: value + strength * (getattr(target, name) - value) for name, value in vars(neutral).items()}
    for name, scatter in {"level": 0.7, "slope": 1.0, "tilt": 1.2, "loudness": 1.5}.items():
        cues[name] += scatter * rng.standard_normal()
    for name, scatter in {"spread": 0.2, "rate": 0.05, "jitter": 0.2, "breath": 0.2, "stress": 0.2}.items():
        cues[name] = max(cues[name], 0.2 * getattr(neutral, name)) * np.exp(scatter * rng.standard_normal())
    return Prosody(**cues)


def prosody_of_clip(emotion: str, voice: int, take: int, seed: int = 0) -> tuple[Prosody, np.random.Generator]:
    """Returns the prosody of a clip, and the generator for the rest of it; see [`synthesize_clip`]."""
    rng = _generator(seed, voice, EMOTIONS.index(emotion), take)
    return _clip_prosody(emotion, make_voice(voice, seed).expression, rng), rng


def dimensions_of_clip(emotion: str, voice: int, take: int, seed: int = 0) -> dict[str, float]:
    """Returns the arousal and the valence of a clip, from 0 to 1; see [`synthesize_clip`]."""
    prosody, _ = prosody_of_clip(emotion, voice, take, seed)
    excited = 0.1 * prosody.level + 0.35 * np.log(prosody.spread)  # the level and the range of the pitch
    excited += 0.05 * (prosody.loudness + 10) + 2 * np.log(prosody.rate)
    pleasant = 0.5 + 0.3 * prosody.slope - 0.12 * abs(prosody.tilt - 7)
    return {"arousal": float(1 / (1 + np.exp(-excited))), "valence": float(1 / (1 + np.exp(-pleasant)))}


def _smooth(track: np.ndarray, seconds: float) -> np.ndarray:
    """Smooths a stepwise control track (frames,), so that it moves from step to step within about `seconds`."""
    window = np.hanning(2 * round(seconds * SAMPLING_RATE / FRAME / 2) + 3)
    return np.convolve(np.pad(track, len(window) // 2, mode="edge"), window / window.sum(), mode="valid")


def _to_samples(track: np.ndarray) -> np.ndarray:
    """Interpolates a control track (frames,) to (frames * FRAME,) samples."""
    return np.interp(np.arange(len(track) * FRAME), (np.arange(len(track)) + 0.5) * FRAME, track)


def resonate(signal: np.ndarray, resonators: Iterable[tuple[np.ndarray | float, float]]) -> np.ndarray:
    """Applies a cascade of moving second-order resonators, A / (1 - B / z - C / z**2), frame by frame.

    Source: Klatt (1980), "Software for a cascade/parallel formant synthesizer", JASA 67(3), eq. 1-4. The frames
    overlap by half and are filtered by their spectra, so that resonators may move without a click.

    Args:
        signal: (frames * FRAME,) samples.
        resonators: frequency, (frames,) or one number, and bandwidth of each, in Hz.
    """
    length = 4 * FRAME  # the frame's own 2 * FRAME samples, and room for its resonators to ring out
    delay = np.exp(-2j * np.pi * np.fft.rfftfreq(length))
    response = np.ones(1)
    for frequency, bandwidth in resonators:
        c = -np.exp(-2 * np.pi * bandwidth / SAMPLING_RATE)
        b = 2 * np.sqrt(-c) * np.cos(2 * np.pi * np.reshape(frequency, (-1, 1)) / SAMPLING_RATE)
        response = response * (1 - b - c) / (1 - b * delay - c * delay**2)
    halves = np.pad(signal, FRAME // 2).reshape(-1, FRAME)  # frame k is centred on the control track's point k
    window = np.sin(np.pi * (np.arange(2 * FRAME) + 0.5) / (2 * FRAME)) ** 2
    frames = np.fft.irfft(np.fft.rfft(np.hstack([halves[:-1], halves[1:]]) * window, length) * response, length)
    output = np.zeros((len(halves) + 2, FRAME))
    for part, piece in enumerate(frames.reshape(len(frames), 4, FRAME).swapaxes(0, 1)):
        output[part : part + len(frames)] += piece
    return output.ravel()[FRAME // 2 :][: len(signal)]


def glottal_flow(
    f0: np.ndarray, open_quotient: float, jitter: float, shimmer: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns the glottal airflow: in each cycle it rises as half a cosine, falls as a quarter, and is 0 after that.

    Source: Rosenberg (1971), "Effect of glottal pulse shape on the quality of natural vowels", JASA 49, pulse C;
    the flow rises during two thirds of the open phase.

    Args:
        f0: (T,) pitch in Hz at every sample.
        open_quotient: share of the cycle in which the glottis is open.
        jitter, shimmer: standard deviation of the cycles' length and height, relative.

    Returns:
        (T,) flow, between 0 and about 1.
    """
    cycle = np.floor(np.cumsum(f0) / SAMPLING_RATE).astype(int)
    wobble = np.clip(rng.standard_normal((2, 2 * cycle[-1] + 2)), -2.5, 2.5)  # jitter may add cycles: room for twice
    cycle, phase = np.divmod(np.cumsum(f0 * (1 + jitter * wobble[0][cycle])) / SAMPLING_RATE, 1.0)
    rise, fall = open_quotient * 2 / 3, open_quotient / 3
    up, down = 0.5 - 0.5 * np.cos(np.pi * phase / rise), np.cos(0.5 * np.pi * (phase - rise) / fall)
    flow = np.where(phase < rise, up, down)
    return np.where(phase < open_quotient, flow, 0.0) * (1 + shimmer * wobble[1][cycle.astype(int)])


def _tilt(source: np.ndarray, decibels: float) -> np.ndarray:
    """Applies a one-pole low-pass with gain 1 at 0 Hz and `decibels` of attenuation at 3 kHz (Klatt 1980, TL)."""
    power = 10 ** (-max(decibels, 0.1) / 10)
    p = (1 - power * np.cos(2 * np.pi * 3000 / SAMPLING_RATE)) / (1 - power)
    pole = p - np.sqrt(p * p - 1)
    return lfilter([1 - pole], [1, -pole], source)


def _utterance(prosody: Prosody, rate: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns control tracks, one value per frame, of a random string of syllables between two silences.

    Returns:
        Seven tracks (frames,): F1, F2, F3 in Hz, level of voicing, level of noise, its frequency in Hz, pitch accent.
    """
    # The length is drawn first and filled with syllables at the clip's rate, so it does not depend on the emotion.
    seconds = rng.uniform(1.0, 1.8)
    n_syllables = round(seconds * rate)
    lengths = rng.uniform(0.85, 1.15, n_syllables)
    rows = []  # seconds, then the seven values held for that long
    for length in seconds * lengths / lengths.sum():
        consonant, vowel = CONSONANTS[rng.integers(len(CONSONANTS))], VOWELS[rng.integers(len(VOWELS))]
        accent, stress = rng.standard_normal(), 10 ** (prosody.stress * rng.standard_normal() / 20)
        hold = min(consonant.duration * 4.7 / rate, length / 2)
        noisy = 0.02 if consonant.burst else hold
        closed, noise = (*consonant.locus, stress * consonant.voicing), stress * consonant.noise
        rows.append((hold - noisy, *closed, 0.0, consonant.noise_frequency, accent))
        rows.append((noisy, *closed, noise, consonant.noise_frequency, accent))
        rows.append((length - hold, *vowel, stress, 0.0, consonant.noise_frequency, accent))
    before, after = ((0.1, *row[1:4], 0.0, 0.0, *row[6:]) for row in (rows[0], rows[-1]))
    durations, *controls = np.array([before, *rows, after]).T
    frames = np.diff(np.round(np.cumsum([0.0, *durations]) * SAMPLING_RATE / FRAME).astype(int))
    return [np.repeat(control, frames) for control in controls]


def synthesize_clip(emotion: str, voice: int, take: int, seed: int = 0) -> np.ndarray:
    """Returns one clip of 1.2 to 2 seconds; the same arguments give the same samples.

    Args:
        emotion: one of `EMOTIONS`.
        voice: number of the speaker, from 0.
        take: number of the clip among this speaker's clips of this emotion, from 0.
        seed: random seed of the corpus.

    Returns:
        float32 (T,) at 44,100 Hz, within (-0.9, 0.9).

    Raises:
        ValueError: the emotion is unknown.
    """
    if emotion not in EMOTIONS:
        raise ValueError(f"unknown emotion {emotion!r}: the demo corpus has {', '.join(EMOTIONS)}")
    speaker = make_voice(voice, seed)
    prosody, rng = prosody_of_clip(emotion, voice, take, seed)
    *formants, voicing, noise, noise_frequency, accent = _utterance(prosody, speaker.rate * prosody.rate, rng)

    course = np.linspace(-0.5, 0.5, len(accent))
    semitones = prosody.level + prosody.slope * course + prosody.spread * _smooth(accent, 0.10)
    f0 = _to_samples(speaker.f0 * 2 ** (semitones / 12))
    flow = glottal_flow(f0, prosody.open_quotient, prosody.jitter, 3 * prosody.jitter, rng)
    # The flow's derivative models radiation at the lips; divided by pitch, it is equally strong in every voice.
    pulses = _tilt(np.diff(flow, prepend=0.0) * SAMPLING_RATE / f0 / 10, prosody.tilt + speaker.tilt)
    breath = speaker.breath * prosody.breath * rng.standard_normal(len(flow)) * (0.3 + flow)
    source = (pulses + breath) * _to_samples(_smooth(voicing, 0.03))
    hiss = np.diff(rng.standard_normal(len(flow) + 1)) * _to_samples(_smooth(noise, 0.01))

    scale = 17.5 / speaker.tract_length
    moving = [_smooth(formant, 0.05) * prosody.smile for formant in formants]
    frequencies = [scale * frequency for frequency in UPPER_FORMANTS] + [scale * formant for formant in moving]
    bandwidths = [*UPPER_BANDWIDTHS, 70.0, 90.0, 130.0]
    speech = resonate(source, list(zip(frequencies, bandwidths, strict=True)))
    # Consonants and background noise have a fixed level relative to the vowels, which does not reveal the loudness.
    speech = speech / np.abs(speech).max() + 0.04 * resonate(hiss, [(scale * noise_frequency, 1200.0)])
    speech += 10 ** (-rng.uniform(55, 65) / 20) * rng.standard_normal(len(speech))
    peak = 10 ** (min(prosody.loudness, -1.0) / 20)
    return (peak * speech / np.abs(speech).max()).astype(np.float32)


def write_demo_corpus(folder: str | Path, *, n_voices: int = 24, clips_per_emotion: int = 5, seed: int = 0) -> None:
    """Writes the corpus as `voice_NN/EMOTION_TAKE.wav` (44.1 kHz, mono, 16 bits), unless it is already there.

    The folder appears complete or not at all; the same parameters write the same bytes.

    Args:
        folder: folder of the corpus; created with its parents.
        n_voices: number of speakers, half of them women.
        clips_per_emotion: number of clips of each emotion by each speaker.
        seed: random seed of voices and clips.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: `folder` holds something else, a corpus with other parameters, or lacks clips.
    """
    if n_voices < 1 or clips_per_emotion < 1 or seed < 0:
        raise ValueError(
            f"n_voices={n_voices} and clips_per_emotion={clips_per_emotion} must be at least 1, and seed={seed} at "
            "least 0"
        )
    folder = Path(folder)
    manifest = {"version": VERSION, "n_voices": n_voices, "clips_per_emotion": clips_per_emotion, "seed": seed}
    clips = {
        f"voice_{voice:02d}/{emotion}_{take:02d}.wav": (emotion, voice, take)
        for voice in range(n_voices)
        for emotion in EMOTIONS
        for take in range(clips_per_emotion)
    }
    if _holds(folder, manifest, clips):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "corpus"
        for name, (emotion, voice, take) in clips.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            samples = np.round(synthesize_clip(emotion, voice, take, seed) * 32767).astype(np.int16)
            wavfile.write(unfinished / name, SAMPLING_RATE, samples)
        (unfinished / MANIFEST).write_text(json.dumps(manifest))
        try:
            unfinished.rename(folder)
        except OSError:  # another process may have written the same corpus in the meantime
            if not _holds(folder, manifest, clips):
                raise


def _holds(folder: Path, manifest: dict[str, int], clips: Iterable[str]) -> bool:
    """Returns whether `folder` contains the corpus of this manifest; False if it is empty or does not exist."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "give another folder, or delete this one and run again"
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise FileExistsError(f"{folder} exists and is not a demo corpus; {remedy}") from error
    if found != manifest:
        raise FileExistsError(f"{folder} holds a demo corpus made with {found}, not with {manifest}; {remedy}")
    missing = [name for name in clips if not (folder / name).is_file()]
    if missing:
        raise FileExistsError(f"{folder} lacks {len(missing)} of its clips, such as {missing[0]}; {remedy}")
    return True


# ---- The corpus ----


def make_demo_corpus(cache_dir: str | None) -> str:
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"maxmvit_demo_corpus_{VERSION}"
    try:
        write_demo_corpus(folder)
    except FileExistsError as error:
        raise DataError(str(error)) from error
    return str(folder)


def _tree(folder: Path) -> Iterator[dict]:
    manifest = folder / MANIFEST
    seed = json.loads(manifest.read_text())["seed"] if manifest.is_file() else None
    for audio in visible_files(folder, "voice_*/*.wav"):
        emotion, _, take = audio.stem.rpartition("_")
        row = {"file": audio.relative_to(folder).as_posix(), "audio": audio, "label": emotion}
        if seed is not None:
            voice = int(audio.parent.name.removeprefix("voice_"))
            row["dimensions"] = dimensions_of_clip(emotion, voice, int(take), seed)
        yield row | {"speaker": audio.parent.name}


RECORD = Record(
    labels=("neutral", "happy", "angry", "sad"),
    aliases={name: name for name in ("neutral", "happy", "angry", "sad")},
    hub={},
    tree=_tree,
    dimensions={"arousal": (0, 1), "valence": (0, 1)},
    speech="synthesised voices; labels are what they were made to express",
    licence="MIT",
    clips=480,
    speakers=24,
)
