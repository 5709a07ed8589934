"""
Classifies the emotion of recordings in files, folders and lists:

    python predict_ser.py FILE_OR_FOLDER... [--model MODEL] [--window 3 --hop 1] [--output out.csv]

For a recording longer than the longest training clip of the model, the prediction is the mean over windows.

Rows are written one by one. An interrupted run continues where it stopped when the same command is given again.
out.csv.origin.json, beside out.csv, records the model and windows of its rows; rows of another model or other windows
are refused. Several processes can divide the work, on any number of machines that share the folder of --output:

    accelerate launch --multi_gpu predict_ser.py FILE_OR_FOLDER... --output out.csv

Each writes its part to out.csv.parts, beside out.csv, and the first joins the parts at the end in the input's order.

Without --output, a terminal gets a readable table, and a pipe or a file gets the rows as CSV.

Exit codes: 0 if every file was classified, 1 if some could not be read (they are named, and have no row) or rows could
not be written, 2 if the command could not start, 130 if it was interrupted (Ctrl+C), and 141 if the program that reads
its output ended first.

A model can be adapted to a voice, or to recording conditions, without labels. --enroll writes a profile of a speaker's
recordings, which must be of several emotions, and --adapt uses it:

    python predict_ser.py --enroll FOLDER --speaker_profile voice.json
    python predict_ser.py RECORDINGS --adapt voice.json

--adapt speaker makes a profile of each speaker's recordings (from a list with a column speaker), and --adapt table one
of all recordings of the command. Do not adapt to recordings of one emotion: it would be attributed to the voice.

With --segments_from, speaker turns, subtitles or annotations of the recordings are classified, one row for each, with
totals by speaker:

    python predict_ser.py talk.wav --segments_from talk.rttm --adapt speaker --output talk.csv

Predictions along a recording can be written as annotations for Praat, ELAN, Audacity or video players, in the format
that the suffix of --output names or, for several recordings, to a folder:

    python predict_ser.py talk.wav --window 3 --hop 1 --output talk.TextGrid
    python predict_ser.py RECORDINGS --output_dir out --output_format TextGrid srt

With --segments, a file of the true emotions along the recordings, predictions are scored at the end: the emotion
diarization error rate, the share of emotional time with the right label, and the F1 of segments (defined in
ser/inference/references.py).
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ser.utils import wait_passively

wait_passively()  # before torch is imported

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from tqdm import tqdm  # noqa: E402

from audio_maxmvit import LONGEST_CLIP_S  # noqa: E402
from pipeline_maxmvit import (  # noqa: E402
    RELEVANCE,
    SHORTEST_WINDOW_S,
    MaxMViTAudioClassificationPipeline,
)
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion  # noqa: E402
from ser.files import check_writable  # noqa: E402
from ser.inference.annotations import (  # noqa: E402
    FORMATS,
    annotation_paths,
    annotations_of,
    format_totals,
    speaker_totals,
    write_annotations,
    write_totals,
)
from ser.inference.enrollment import (  # noqa: E402
    SPEAKER,
    adaptation_origin,
    check_speakers,
    profiles_of,
    write_profile,
)
from ser.inference.given_segments import LIBRARIES, read_given_segments, require_library  # noqa: E402
from ser.inference.predictions import OUTPUT_SUFFIXES, Item, Table, find_items, open_table  # noqa: E402
from ser.inference.references import Segment, format_scores, pooled_scores, read_references, reference_scores  # noqa: E402
from ser.inference.shards import Share, connect_processes, join_parts  # noqa: E402
from ser.models import load_config, load_pipeline, shipped_weights  # noqa: E402
from ser.utils import FAILED, NOT_STARTED, DataError, UsageError, exit_code  # noqa: E402

MAX_PRINTED = 10  # number of recordings up to which the scores of each are printed
ROWS_FILE = "predictions.csv"  # in --output_dir


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        processes = connect_processes()
        check_output(args, processes)
        if args.enroll:
            enroll(args, processes)
            if not args.inputs:
                return 0
        classify = load_classifier(args)
        config = classify.model.config
        names = [config.id2label[index] for index in range(config.num_labels)]
        label_names, dimensions = names[: config.num_classes], names[config.num_classes :]
        check_classes(args, label_names, dimensions)
        classes = [name for name in label_names if args.only is None or name in args.only]
        scored = [*classes, *dimensions]
        items = find_items(args.inputs, label_names, with_speakers=args.adapt == SPEAKER and not args.segments_from)
        if args.segments_from:
            items = with_segments(items, args.segments_from, args.tiers or [])
        if args.adapt == SPEAKER:
            check_speakers(items)
        args.adaptation = adaptation_origin(args.adapt, args.relevance, items)
        references = args.segments and read_references(args.segments, [item.file for item in items], label_names)
        paths = annotation_files(args, items)
        open_at = partial(open_table, args, items, scored, classify, in_memory=args.annotation is not None)
        share = Share(processes, args.table, items, open_at) if processes else None
        table, todo = share.begin() if share else begin(args.table, items, open_at)
        profiles = profiles_of(classify, args.adapt, items, args.relevance, processes) if args.adapt else None
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_STARTED
    is_shown = processes is None or processes.is_main_process
    failed = predict(classify, todo, table, is_shown, profiles)
    if share:
        joined = share.end(failed)
        share.state.destroy_process_group()
        if joined is None:
            return 0
        table, failed = joined
    summarise(items, table, len(failed), label_names)
    if args.only:
        print(f"Scores are divided by their sum over {', '.join(classes)} (--only).", file=sys.stderr)
    if args.segments_from and table.rows:
        report_speakers(table, classes, dimensions, args.table)
    for file, own in paths.items():
        for path in own if file in table.rows else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_annotations(path, file, annotations_of(table.rows[file], classes))
    if references:
        compare(references, table, args.segments)
    return FAILED if failed else 0


def load_classifier(args: argparse.Namespace) -> MaxMViTAudioClassificationPipeline:
    """Loads the pipeline with the options of the command. Annotations of windows have those of the model's length if
    none is given, which becomes `args.window`.

    Raises:
        UsageError: The model cannot be used, or does not have a label of --only.
    """
    has_annotations = args.annotation is not None or args.output_dir is not None
    if has_annotations and args.window is None and not args.segments_from:
        args.window = load_config(args.model or shipped_weights()).window_s
    timeline: dict = {} if args.window is None else {"window_s": args.window, "hop_s": args.hop, "smooth": args.smooth}
    return load_pipeline(
        args.model,
        args.device,
        batch_size=args.batch_size,
        on_error="skip",
        allow_private_urls=args.allow_private_urls,
        min_score=args.min_score,
        min_familiarity=args.min_familiarity,
        only=args.only,
        **timeline,
    )


def with_segments(items: Sequence[Item], source: str, tiers: Sequence[str]) -> list[Item]:
    """Returns the recordings that have segments in `source`, with their segments."""
    found = read_given_segments(source, [item.file for item in items], tiers)
    return [replace(item, segments=found[item.file]) for item in items if item.file in found]


def annotation_files(args: argparse.Namespace, items: Sequence[Item]) -> dict[str, list[Path]]:
    """Returns the annotation files to write, by recording.

    Raises:
        UsageError: There are several recordings for one file, or a file exists that no earlier run of the command
            wrote.
    """
    if args.annotation is not None:
        if len(items) > 1:
            raise UsageError(
                f"{args.annotation} is for one recording, and there are {len(items)}: give a folder with --output_dir "
                f"and --output_format {Path(args.annotation).suffix[1:]}."
            )
        paths = {item.file: [Path(args.annotation)] for item in items}
    elif args.output_dir is not None:
        paths = annotation_paths(args.output_dir, [item.file for item in items], args.output_format)
    else:
        return {}
    if not (args.table and Path(args.table).exists()):  # else they are from an earlier run
        existing = [path for own in paths.values() for path in own if path.exists()]
        if existing:
            raise UsageError(f"{existing[0]} exists, and may be annotated by hand: remove it, or give another name.")
    return paths


def check_classes(args: argparse.Namespace, label_names: Sequence[str], dimensions: Sequence[str]) -> None:
    """Raises `UsageError` if an output or a comparison needs classes, and the model has only dimensions."""
    names = ("annotation", "output_dir", "segments")
    if not label_names and (given := [name for name in names if getattr(args, name) is not None]):
        option = "--output" if given[0] == "annotation" else f"--{given[0]}"
        raise UsageError(
            f"{option} {getattr(args, given[0])} is for emotions, and the model has only dimensions "
            f"({', '.join(dimensions)}): use --output with .csv or .jsonl."
        )


def report_speakers(table: Table, label_names: list[str], dimensions: list[str], path: str | None) -> None:
    """Prints the totals by speaker, and writes them beside the table if it is a file."""
    totals = speaker_totals(table.rows, label_names, dimensions)
    shown = format_totals(totals, label_names, dimensions)
    heading = "Share of time, and mean score in brackets" if label_names else "Means, and share of other time"
    print(f"\n{heading}:\n{shown}", file=sys.stderr)
    if path is not None:
        write_totals(Path(path).with_suffix(".speakers.csv"), totals)


def enroll(args: argparse.Namespace, processes: PartialState | None) -> None:
    """Writes the profile of --enroll, in the first of several processes."""
    if processes is None or processes.is_main_process:
        classify = load_pipeline(
            args.model, args.device, batch_size=args.batch_size, allow_private_urls=args.allow_private_urls
        )
        write_profile(classify, find_items(args.enroll, []), args.relevance, args.speaker_profile)
    if processes is not None:
        processes.wait_for_everyone()


def check_output(args: argparse.Namespace, processes: PartialState | None) -> None:
    """Checks, before the model is loaded, that the output can be written, and sets the device of each process.

    Raises:
        UsageError: The output cannot be written.
    """
    if args.segments_from and not Path(args.segments_from).exists():
        raise UsageError(f"--segments_from: there is no {args.segments_from}.")
    suffixes = [Path(args.annotation).suffix] if args.annotation else args.output_format or []
    for suffix in map(str.lower, suffixes):
        if suffix in LIBRARIES:
            require_library(suffix)
    if args.annotation is not None and processes:
        raise UsageError(f"{args.annotation} is written by one process: start predict_ser.py without a launcher.")
    if args.output_dir is not None:
        check_writable(args.table)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    elif args.output is not None:
        check_writable(args.output)
        if not Path(args.output).absolute().parent.is_dir():
            raise UsageError(f"{args.output} cannot be written: there is no folder {Path(args.output).parent}.")
    elif processes:
        raise UsageError(
            f"{processes.num_processes} processes cannot all write to the standard output: give --output."
        )
    elif sys.stdout is None:
        raise UsageError("the standard output is closed: open it, or give --output.")
    if processes and args.device is None and torch.cuda.is_available():
        args.device = f"cuda:{processes.local_process_index % torch.cuda.device_count()}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE_OR_FOLDER",
        help="audio files, URLs, folders (searched recursively; a folder named after a label gives the true label of "
        "its files), or .csv, .tsv or .jsonl lists with a column file and, if known, a column label",
    )
    parser.add_argument(
        "--model",
        help="checkpoint folder, or its name on the Hugging Face Hub (default: the one that comes with the code)",
    )
    parser.add_argument("--window", type=float, help="seconds; one row per window instead of one per file")
    parser.add_argument(
        "--hop", type=float, help="seconds from one window to the next (default: the length of a window)"
    )
    parser.add_argument(
        "--allow_private_urls", action="store_true", help="also fetch URLs in this machine's own network"
    )
    parser.add_argument(
        "--smooth", type=int, default=1, help="odd number of windows to average around each one (default 1)"
    )
    parser.add_argument("--min_score", type=float, help='from 0 to 1; a prediction with a lower score is "uncertain"')
    parser.add_argument(
        "--min_familiarity",
        type=float,
        help='from 0 to 1, such as 0.05; a recording with a lower familiarity is "unfamiliar". Familiarity is the '
        "share of training-like clips that are less like the training data. Adds the column familiarity (0 rejects "
        "nothing)",
    )
    parser.add_argument(
        "--segments",
        help="true emotions along the recordings, to score predictions with --window: a .csv, .tsv or .jsonl list of "
        'file,start,end,label in seconds (which may also be an input), or an .rttm file; "silence" means no emotion',
    )
    parser.add_argument(
        "--output",
        help=".csv or .jsonl file (default: the standard output, as a readable table in a terminal, else as CSV); or, "
        f"for one recording, annotations: {', '.join(FORMATS.values())}; without --window, windows have the model's "
        "length",
    )
    parser.add_argument(
        "--output_dir",
        help=f"folder for the annotations of several recordings, with {ROWS_FILE}, from which the same command "
        "continues after an interruption",
    )
    parser.add_argument(
        "--output_format",
        nargs="+",
        metavar="FORMAT",
        help=f"formats of the annotations in --output_dir: {', '.join(name[1:] for name in FORMATS.values())}",
    )
    parser.add_argument(
        "--segments_from",
        metavar="FILE_OR_FOLDER",
        help="classify these segments: .rttm, .csv or .tsv (start,end[,speaker][,text][,file]), .srt, .vtt, "
        ".TextGrid, .eaf, .json of whisper, whisperX or pyannote, .txt of Audacity; or a folder with one file for "
        "each recording. With --window, segments longer than a window get one row per window",
    )
    parser.add_argument("--tiers", nargs="+", metavar="TIER", help="tiers to read from TextGrid and ELAN files")
    parser.add_argument(
        "--only", nargs="+", metavar="LABEL", help="choose only among these labels; scores are divided by their sum"
    )
    parser.add_argument(
        "--enroll", nargs="+", metavar="FILE_OR_FOLDER", help="make a profile of one speaker from these recordings"
    )
    parser.add_argument("--speaker_profile", metavar="FILE.json", help="where --enroll writes the profile")
    parser.add_argument(
        "--adapt",
        metavar="PROFILE",
        help="classify relative to a voice or recording conditions: the file of a profile from --enroll; speaker, for "
        "a profile of each speaker in the input; or table, for one profile of all recordings (default: none)",
    )
    parser.add_argument(
        "--relevance",
        type=float,
        default=RELEVANCE,
        help="weight of the training clips' mean in a profile, as a number of clips (default 4)",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="clips or windows in one forward pass (default 8)")
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: the first accelerator, or the CPU)")
    args = parser.parse_args(arguments)
    check_adaptation(parser, args)
    if args.model is None and args.inputs and (Path(args.inputs[0]) / "config.json").is_file():
        parser.error(f"{args.inputs[0]} is a checkpoint: give the model with --model, as --model {args.inputs[0]}")
    if args.hop is not None and args.window is None:
        parser.error("--hop needs --window")
    if args.segments is not None and args.window is None:
        parser.error("--segments needs --window: it scores predictions along a recording")
    if args.window is not None:
        hop = args.window if args.hop is None else args.hop
        if not SHORTEST_WINDOW_S <= hop <= args.window <= LONGEST_CLIP_S:
            parser.error(
                f"--window and --hop must be from {SHORTEST_WINDOW_S:g} to {LONGEST_CLIP_S:g} seconds, and --hop no "
                "longer than --window"
            )
    if args.smooth < 1 or args.smooth % 2 == 0:
        parser.error("--smooth must be an odd number of windows")
    if args.min_score is not None and not 0 <= args.min_score <= 1:
        parser.error("--min_score must be from 0 to 1")
    if args.min_familiarity is not None and not 0 <= args.min_familiarity <= 1:
        parser.error("--min_familiarity must be from 0 to 1")
    if args.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    check_segments(parser, args)
    check_formats(parser, args)
    return args


def check_segments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command if the options for segments are incompatible."""
    if args.tiers and not args.segments_from:
        parser.error("--tiers needs --segments_from")
    if args.segments_from and args.segments:
        parser.error(
            "--segments scores predictions along whole recordings, and --segments_from classifies parts of them: "
            "leave out one of the two"
        )


def check_formats(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command if the outputs are incompatible; sets `args.annotation`, the file of annotations if --output is
    one, and `args.table`, the file of rows if there is one."""
    args.annotation, args.table = None, args.output
    if args.output_dir is not None:
        args.table = str(Path(args.output_dir) / ROWS_FILE)
        if args.output is not None:
            parser.error(f"--output_dir has its own table, {ROWS_FILE}: leave out --output")
        if not args.output_format:
            parser.error("--output_dir needs --output_format, such as TextGrid")
        args.output_format = [f".{name.removeprefix('.')}".lower() for name in args.output_format]
        if unknown := [name for name in args.output_format if name not in FORMATS]:
            parser.error(
                f"--output_format {unknown[0]}: must be one of {', '.join(each[1:] for each in FORMATS.values())}"
            )
    elif args.output_format:
        parser.error("--output_format needs --output_dir (the suffix of --output names its format)")
    if args.output is not None and Path(args.output).suffix not in OUTPUT_SUFFIXES:
        if Path(args.output).suffix.lower() not in FORMATS:
            parser.error(f"--output must end in {', '.join((*OUTPUT_SUFFIXES, *FORMATS.values()))}")
        args.annotation, args.table = args.output, None


def check_adaptation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command if the options for profiles are incompatible."""
    if not args.inputs and not args.enroll:
        parser.error("the following arguments are required: FILE_OR_FOLDER")
    if bool(args.enroll) != bool(args.speaker_profile):
        parser.error(
            "--enroll (the recordings) and --speaker_profile (the file of the profile) must be given together"
        )
    if args.enroll and args.adapt:
        parser.error(
            "--enroll and --adapt cannot be combined: with --enroll, recordings are classified relative to its profile"
        )
    if not (math.isfinite(args.relevance) and args.relevance >= 0):
        parser.error("--relevance must be a number of clips, 0 or more")
    if args.enroll and args.inputs:
        args.adapt = args.speaker_profile


def begin(output: str | None, items: list[Item], open_at: Callable[[str | None], Table]) -> tuple[Table, list[Item]]:
    """Opens the table of predictions, and returns it with the recordings that are still to be classified."""
    if output is not None:
        join_parts(output, items, open_at)
    table = open_at(output)
    todo = [item for item in items if item.file not in table.done]
    if table.done:
        print(f"{table.path} holds {len(table.done)} files already; {len(todo)} remain.", file=sys.stderr)
    return table, todo


def predict(
    classify: MaxMViTAudioClassificationPipeline,
    todo: list[Item],
    table: Table,
    is_shown: bool = True,
    profiles: Mapping[str, Any] | None = None,
) -> list[str]:
    """Classifies items, or their segments, writes their rows to a table, closes it, and returns the files that cannot
    be classified. With `profiles` by file, from [`profiles_of`], each file is classified relative to its own, if
    any."""
    failed: list[str] = []
    files = (item.file for item in todo)
    options: dict[str, Any] = {} if profiles is None else {"speaker": [profiles.get(item.file) for item in todo]}
    if any(item.segments is not None for item in todo):
        options["segments"] = [item.segments for item in todo]
    predictions = classify(files, **options)
    with tqdm(total=len(todo), unit="file", file=sys.stderr, disable=not is_shown) as progress:
        for item, prediction in zip(todo, predictions, strict=True):
            if isinstance(prediction, dict):
                failed.append(item.file)
                progress.write(prediction["error"], file=sys.stderr)
                progress.set_postfix(failed=len(failed), refresh=False)
            else:
                table.add(item, prediction)
            progress.update()
    table.close()
    return failed


def summarise(items: list[Item], table: Table, n_failed: int, label_names: list[str]) -> None:
    print(f"{len(items)} files: {len(items) - n_failed} classified, {n_failed} failed.", file=sys.stderr)
    labelled = [(item.label, table.done[item.file]) for item in items if item.label and item.file in table.done]
    judged = [(label_names.index(label), label_names.index(predicted)) for label, predicted in labelled
              if predicted in label_names]  # fmt: skip
    if judged:
        truth, predictions = zip(*judged, strict=True)
        scores = scores_from_confusion(confusion_matrix(truth, predictions, len(label_names)))
        unnamed = Counter(
            "silent" if predicted is None else predicted for _, predicted in labelled if predicted not in label_names
        )
        left_out = "".join(f" ({count} {kind} ones left out)" for kind, count in sorted(unnamed.items()))
        print(
            f"WA {scores['WA']:.4f}  UA {scores['UA']:.4f} on {len(judged)} labelled files{left_out}", file=sys.stderr
        )


def compare(references: dict[str, list[Segment]], table: Table, path: str) -> None:
    """Prints the scores of the predictions along the recordings against the segments read from `path`."""
    scores = reference_scores(references, table.along, path)
    if len(scores) <= MAX_PRINTED:
        for file, own in scores.items():
            print(f"{file}: {format_scores(own)}", file=sys.stderr)
    if len(scores) > 1:
        print(f"{len(scores)} recordings: {format_scores(pooled_scores(scores.values()))}", file=sys.stderr)


def command() -> int:
    return exit_code(main, "Stopped. With --output, the same command continues from here.")
