"""
Serves a page that classifies the emotion of recordings: run `python app.py [MODEL]`, then open http://localhost:7860.

Needs requirements-app.txt. docs/space.md shows how to publish the page as a Hugging Face Space.
"""

import argparse
import csv
import math
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ser.utils import wait_passively

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
wait_passively()  # before torch is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from audio_maxmvit import AudioError, stream_audio  # noqa: E402
from pipeline_maxmvit import SILENCE, MaxMViTAudioClassificationPipeline  # noqa: E402
from ser.evaluation.plots import clock, envelope, plot_spectrograms, plot_timeline  # noqa: E402
from ser.inference.annotations import annotations_of, write_annotations  # noqa: E402
from ser.inference.given_segments import require_library  # noqa: E402
from ser.models import load_pipeline  # noqa: E402
from ser.utils import UsageError, exit_code  # noqa: E402

ENVELOPE_POINTS = 1200
FORMATS = {"TextGrid": ".TextGrid", "SRT": ".srt", "CSV": ".csv"}  # of the files that are offered
KEEP_S, CHECK_S = 600, 30  # age at which recordings and their tables are deleted, and interval of the check
MIN_FAMILIARITY = 0.05  # below it, the page shows a warning
TITLE = "Speech emotion recognition"
INTRODUCTION = (
    "Upload or record speech. MaxMViT-MLP classifies its emotion from spectrograms. For a recording longer than "
    "{max_clip_s:.3g} s, the longest clip that the model was trained on, scores are averaged over windows. "
    f"Uploads are deleted after {KEEP_S // 60} minutes."
)
STYLE = """
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: auto}
.full-width img {width: 100%}
#timeline img {max-width: 800px}
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        nargs="?",
        default=os.environ.get("SER_MODEL"),
        help="folder or name on the Hub (default: SER_MODEL, or the checkpoint that comes with the code)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: the first accelerator, or the CPU)")
    parser.add_argument(
        "--port", type=_port, help="from 1 to 65535 (default: GRADIO_SERVER_PORT, or the first free port from 7860)"
    )
    parser.add_argument("--max_mb", type=_above_zero, default=50, help="maximum size of an upload (default 50)")
    parser.add_argument(
        "--max_minutes", type=_above_zero, default=15, help="maximum length of a recording (default 15)"
    )
    parser.add_argument(
        "--max_queue", type=_above_zero, default=20, help="maximum number of waiting visitors (default 20)"
    )
    args = parser.parse_args(arguments)
    for suffix in (".textgrid", ".srt"):
        require_library(suffix)
    classify = load_pipeline(args.model, args.device)
    with _own_folder():
        page = build_page(classify, args.max_minutes, args.max_queue)
        try:
            page.launch(
                server_port=args.port,
                max_file_size=f"{args.max_mb}mb",
                theme=theme(),
                css=STYLE,
                footer_links=["gradio"],
            )
        except (OSError, OverflowError) as error:
            first = os.environ.get("GRADIO_SERVER_PORT", 7860)
            fault = f"no port from {first} on is free"
            if args.port:
                fault = f"port {args.port} is taken or may not be used"
            raise UsageError(f"{fault}: name another with --port. ({error})") from error


@contextmanager
def _own_folder() -> Iterator[None]:
    """Makes gradio store recordings and tables in a folder of this process (in GRADIO_TEMP_DIR, if set), which is
    deleted with its contents when the process ends, even while a recording is being classified."""
    given = os.environ.get("GRADIO_TEMP_DIR")
    if given:
        os.makedirs(given, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="maxmvit_page_", dir=given, ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if given:
                os.environ["GRADIO_TEMP_DIR"] = given


def _end_as_interrupted() -> None:
    """Makes SIGTERM (which Docker and systemd send) and SIGHUP (the terminal is closed) end the process like Ctrl+C,
    which deletes all recordings, unless the signal is ignored, as by nohup."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _above_zero(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return int(text)


def theme() -> gr.Theme:
    """Returns a theme with the system's fonts, so that the page loads nothing from other servers."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(
    classify: MaxMViTAudioClassificationPipeline, max_minutes: float = 15, max_queue: int = 20
) -> gr.Blocks:
    """Builds the page, for recordings of up to `max_minutes`, one at a time, with up to `max_queue` waiting."""
    config = classify.model.config
    default_s = config.window_s
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CHECK_S, KEEP_S)) as page:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION.format(max_clip_s=config.max_clip_s)}")
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    type="filepath",
                    sources=["upload", "microphone"],
                    label=f"Speech (at most {max_minutes:g} minutes)",
                    buttons=["download"],
                    elem_id="speech",
                )
                with gr.Accordion("Windows of a long recording", open=False):
                    limits = min(0.5, default_s), max(10, default_s)
                    window_s = gr.Slider(*limits, default_s, step=0.1, label="Length in seconds")
                    hop_s = gr.Slider(*limits, default_s, step=0.1, label="Seconds from one window to the next")
                button = gr.Button("Recognise the emotion", variant="primary", elem_id="go")
            with gr.Column(min_width=300):
                message = gr.Markdown(visible=False, elem_id="message")
                answer = gr.Label(label="Emotion", elem_id="answer")
        with gr.Column(visible=False) as along:
            timeline = gr.Plot(show_label=False, elem_id="timeline", elem_classes="full-width")
            with gr.Row():
                files = [gr.DownloadButton(f"Download as {name}", elem_id=name.lower()) for name in FORMATS]
        with gr.Row(visible=False, elem_id="images") as images:
            cqt = gr.Plot(show_label=False, min_width=300, elem_classes="full-width")
            mel = gr.Plot(show_label=False, min_width=300, elem_classes="full-width")

        def show(path: str | None, window_s: float, hop_s: float) -> dict[Any, Any]:
            try:
                found = analyse(classify, path, window_s, hop_s, 60 * max_minutes)
            except AudioError as error:
                name = str(error).replace(str(path), Path(path or "").name)
                hidden = {part: gr.update(visible=False) for part in (along, images)}
                return {message: gr.update(value=f"⚠️ {name}", visible=True), answer: None, **hidden}
            paths: list[str | None] = [None] * len(files)
            if found["rows"]:
                names = Path(files[0].GRADIO_CACHE), Path(path or "").name
                paths = write_files(found["rows"], *names, classify.model.config.num_classes)
            return {
                message: gr.update(value=found["message"], visible=True),
                answer: {name: min(max(score, 0.0), 1.0) for name, score in found["scores"].items()},  # as bars
                along: gr.update(visible=found["timeline"] is not None),
                timeline: found["timeline"],
                **{
                    file: gr.update(value=own, visible=own is not None) for file, own in zip(files, paths, strict=True)
                },
                images: gr.update(visible=True),
                cqt: found["cqt"],
                mel: found["mel"],
            }

        shown = [message, answer, along, timeline, *files, images, cqt, mel]
        gr.on([button.click, audio.stop_recording], show, [audio, window_s, hop_s], shown, show_progress_on=answer)
    return page.queue(max_size=max_queue)


def analyse(
    classify: MaxMViTAudioClassificationPipeline, path: str | None, window_s: float, hop_s: float, max_s: float
) -> dict[str, Any]:
    """
    Computes everything that the page shows for a recording.

    Raises:
        AudioError: There is no recording, it cannot be read, or it lasts longer than `max_s` seconds.
    """
    if path is None:
        raise AudioError("Upload or record some speech first.")
    if not os.path.exists(path):
        raise AudioError(f"This recording was deleted, as all are after {KEEP_S / 60:g} minutes. Upload it again.")
    rate, config = classify.feature_extractor.sampling_rate, classify.model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    classes, dimensions = labels[: config.num_classes], labels[config.num_classes :]
    length, longest = sum(map(len, stream_audio(path, rate, max_s=max_s))), math.ceil(config.max_clip_s * rate)
    duration, is_clip = length / rate, length <= longest
    if is_clip:  # one window as long as the longest training clip
        window_s = hop_s = longest / rate
    options = {"min_familiarity": 0.0} if config.familiarity else {}
    rows = classify(path, window_s=window_s, hop_s=min(hop_s, window_s), max_s=max_s, **options)
    classified = [row for row in rows if row["label"] != SILENCE]
    if not classified:
        raise AudioError(f"{path} is silent from beginning to end.")
    scores = {label: float(np.mean([row["scores"][label] for row in classified])) for label in labels}
    best = max(classes or dimensions, key=scores.__getitem__)
    highest = "clearest" if classes else "highest"
    clearest = max(classified, key=lambda row: row["scores"][best])
    waveform = _read_span(path, rate, clearest["start"], clearest["end"])
    images = _images(classify, waveform, clearest["start"])
    if is_clip:
        message = f"**{clock(duration)}** of speech, classified as one clip.{_familiarity(classified)}"
        return images | {"message": message, "scores": scores, "timeline": None, "rows": None}
    step_s = duration / ENVELOPE_POINTS
    shape = envelope(stream_audio(path, rate), rate, step_s)
    return images | {
        "message": f"**{clock(duration)}** of speech. The result is {_over(classified, rows, window_s)}; the images "
        f"show where “{best}” is {highest}, from {clock(clearest['start'])} on.{_familiarity(classified)}",
        "scores": scores,
        "timeline": plot_timeline(rows, shape, step_s, classes, dimensions),
        "rows": rows,
    }


def _over(classified: list[dict], rows: list[dict], window_s: float) -> str:
    """Describes the number of windows over which scores are averaged, and the number of silent ones."""
    silent = len(rows) - len(classified)
    windows = "that of one window" if len(classified) == 1 else f"the mean over {len(classified)} windows"
    return f"{windows} of {window_s:g} s" + (f" ({silent} more are silent)" if silent else "")


def _familiarity(classified: list[dict]) -> str:
    """Describes how similar a recording is to the training data, if the model computes familiarity."""
    if "familiarity" not in classified[0]:
        return ""
    mean = float(np.mean([row["familiarity"] for row in classified]))
    warning = (
        " The recording is unlike the training data, so do not rely on the result." if mean < MIN_FAMILIARITY else ""
    )
    return f" Familiarity: {100 * mean:.0f} % of training-like clips are less like the training data.{warning}"


def _images(classify: MaxMViTAudioClassificationPipeline, waveform: np.ndarray, start: float) -> dict[str, Figure]:
    cqt, mel = plot_spectrograms(classify.feature_extractor, waveform, start)
    return {"cqt": cqt, "mel": mel}


def _read_span(path: str, rate: int, start: float, end: float) -> np.ndarray:
    """Reads the samples from `start` to `end`, in seconds, without the whole recording in memory."""
    first, last, position, parts = round(start * rate), round(end * rate), 0, []
    for piece in stream_audio(path, rate):
        parts.append(piece[max(0, first - position) : max(0, last - position)])
        position += len(piece)
    return np.concatenate(parts)


def write_files(
    rows: list[dict[str, Any]], folder: Path, recording: str, n_classes: int | None = None
) -> list[str | None]:
    """Writes a timeline in each of `FORMATS` to a new folder below gradio's `folder`, which gradio deletes together
    with uploads; returns the paths. Annotations contain the first `n_classes` labels (default: all): without classes,
    their paths are None."""
    labels = next(list(row["scores"]) for row in rows if row["scores"])
    classes = labels[:n_classes]
    folder = folder / uuid.uuid4().hex
    folder.mkdir(parents=True)
    paths = [folder / f"{Path(recording).stem}_emotions{suffix}" for suffix in FORMATS.values()]
    table = [
        dict.fromkeys(labels, "")
        | row["scores"]
        | {"start": row["start"], "end": row["end"], "prediction": row["label"]}
        for row in rows
    ]
    for path in paths:
        if path.suffix == ".csv":
            write_csv(path, rows, labels)
        elif classes:
            write_annotations(path, recording, annotations_of(table, classes))
    return [str(path) if path.exists() else None for path in paths]


def write_csv(path: Path, rows: list[dict[str, Any]], labels: Sequence[str]) -> None:
    """Writes a timeline as CSV, with a column for each label."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "end", "label", *labels])
        for row in rows:
            scores = [f"{row['scores'][label]:.6f}" if row["scores"] else "" for label in labels]
            writer.writerow([row["start"], row["end"], row["label"], *scores])


def command() -> int:
    _end_as_interrupted()
    return exit_code(main, "The page is closed.")
