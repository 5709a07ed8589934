"""
Names the emotion in files, folders and lists of recordings:

    python predict_ser.py FILE_OR_FOLDER... [--model MODEL] [--window 3 --hop 1] [--output out.csv]

A recording that is longer than the longest clip the model was trained on is answered by the mean over windows.

Rows are written as they come. A run that was broken off goes on where it stopped when the same command is given again;
beside out.csv, out.csv.origin.json keeps which model and windows its rows are of, and no others are added to them.
Several processes share the work, on any number of machines that have the folder of --output in common:

    accelerate launch --multi_gpu predict_ser.py FILE_OR_FOLDER... --output out.csv

Each answers its part beside out.csv, in out.csv.parts, and the first joins them at the end in the order of the input.

Without --output, a terminal gets a table to be read, and a pipe or a file the rows as CSV.

Ends with exit code 0 if every file was answered, 1 if some could not be read (they are named, and have no row) or the
answers not be written, 2 if nothing could be started, 130 if it was interrupted (Ctrl+C), and 141 if what it was piped
into ended before.

Without labels, a model adapts to a voice or to recording conditions. --enroll writes a profile of a speaker's
recordings, of several emotions, and --adapt takes it:

    python predict_ser.py --enroll FOLDER --speaker_profile voice.json
    python predict_ser.py RECORDINGS --adapt voice.json

--adapt speaker makes a profile of each speaker's recordings (of a list with a column speaker), --adapt table one of
all recordings of the command. Do not adapt to recordings of one emotion: it is taken for the voice.

With --segments, what was truly spoken when, the answers along the recordings are scored at the end: the emotion
diarization error rate, the share of time named right, and the F1 of segments (ser/inference/segments.py says how).
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

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
    SpeakerProfile,
)
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion  # noqa: E402
from ser.files import check_writable  # noqa: E402
from ser.inference.enrollment import (  # noqa: E402
    SPEAKER,
    adaptation_origin,
    check_speakers,
    profiles_of,
    write_profile,
)
from ser.inference.predictions import OUTPUT_SUFFIXES, Item, Table, find_items, open_table  # noqa: E402
from ser.inference.segments import Segment, in_words, pooled_scores, read_references, reference_scores  # noqa: E402
from ser.inference.shards import Share, connect_processes, join_parts  # noqa: E402
from ser.models import load_pipeline  # noqa: E402
from ser.utils import FAILED, NOT_STARTED, DataError, UsageError, exit_code  # noqa: E402

MOST_NAMED = 10  # recordings whose scores are printed one by one


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    timeline: dict = {} if args.window is None else {"window_s": args.window, "hop_s": args.hop, "smooth": args.smooth}
    try:
        processes = connect_processes()
        check_output(args, processes)
        if args.enroll:
            enroll(args, processes)
            if not args.inputs:
                return 0
        classify = load_pipeline(
            args.model,
            args.device,
            batch_size=args.batch_size,
            on_error="skip",
            allow_private_urls=args.allow_private_urls,
            min_score=args.min_score,
            min_familiarity=args.min_familiarity,
            **timeline,
        )
        label_names = [classify.model.config.id2label[index] for index in range(classify.model.config.num_labels)]
        items = find_items(args.inputs, label_names, with_speakers=args.adapt == SPEAKER)
        if args.adapt == SPEAKER:
            check_speakers(items)
        args.adaptation = adaptation_origin(args.adapt, args.relevance, items)
        references = args.segments and read_references(args.segments, [item.file for item in items], label_names)
        open_at = partial(open_table, args, items, label_names, classify)
        share = Share(processes, args.output, items, open_at) if processes else None
        table, todo = share.begin() if share else begin(args.output, items, open_at)
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
    if references:
        compare(references, table, args.segments)
    return FAILED if failed else 0


def enroll(args: argparse.Namespace, processes: PartialState | None) -> None:
    """Writes the profile that --enroll asks for; the first of several processes does it."""
    if processes is None or processes.is_main_process:
        classify = load_pipeline(
            args.model, args.device, batch_size=args.batch_size, allow_private_urls=args.allow_private_urls
        )
        write_profile(classify, find_items(args.enroll, []), args.relevance, args.speaker_profile)
    if processes is not None:
        processes.wait_for_everyone()


def check_output(args: argparse.Namespace, processes: PartialState | None) -> None:
    """Settles, before the model is loaded, where answers go, and which device each of several processes takes.

    Raises:
        UsageError: Nothing can be written there.
    """
    if args.output is not None:
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
        help="audio files, URLs, folders (searched to the bottom; where a file lies in a folder named after a label, "
        "that is its true label), or .csv, .tsv or .jsonl lists with a column file and, if known, one label",
    )
    parser.add_argument(
        "--model",
        help="checkpoint folder, or its name on the Hugging Face Hub (default: the one that comes with the code)",
    )
    parser.add_argument("--window", type=float, help="seconds; one row for each window instead of one for each file")
    parser.add_argument("--hop", type=float, help="seconds from window to window (default: the window's length)")
    parser.add_argument(
        "--allow_private_urls", action="store_true", help="fetch URLs in this machine's own network too"
    )
    parser.add_argument("--smooth", type=int, default=1, help="windows averaged around each (odd; default 1)")
    parser.add_argument(
        "--min_score", type=float, help='from 0 to 1; an answer whose best score is below it is "uncertain"'
    )
    parser.add_argument(
        "--min_familiarity",
        type=float,
        help='from 0 to 1, such as 0.05; a recording whose familiarity is below it is "unfamiliar": that is the share '
        "of training-like clips that are less like the training data; adds its column (0 turns nothing away)",
    )
    parser.add_argument(
        "--segments",
        help="true emotions along the recordings, by which --window is scored: a .csv, .tsv or .jsonl of "
        'file,start,end,label in seconds (it may be among the inputs too), or an .rttm file; no emotion is "silence"',
    )
    parser.add_argument(
        "--output",
        help=".csv or .jsonl file (default: the standard output, as a table in a terminal, else as CSV)",
    )
    parser.add_argument(
        "--enroll", nargs="+", metavar="FILE_OR_FOLDER", help="make a profile of one speaker of these recordings"
    )
    parser.add_argument("--speaker_profile", metavar="FILE.json", help="where --enroll writes the profile")
    parser.add_argument(
        "--adapt",
        metavar="PROFILE",
        help="answer relative to a voice or recording conditions: a profile that --enroll wrote; speaker, one of each "
        "speaker's own recordings in the input; or table, one of all recordings in the input (default: none)",
    )
    parser.add_argument(
        "--relevance",
        type=float,
        default=RELEVANCE,
        help="clips that the mean of the training clips counts for in a profile (default 4)",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="clips or windows in one forward (default 8)")
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: the first accelerator, or the CPU)")
    args = parser.parse_args(arguments)
    check_adaptation(parser, args)
    if args.model is None and args.inputs and (Path(args.inputs[0]) / "config.json").is_file():
        parser.error(f"{args.inputs[0]} is a checkpoint: the model goes to --model now, as --model {args.inputs[0]}")
    if args.hop is not None and args.window is None:
        parser.error("--hop needs --window")
    if args.segments is not None and args.window is None:
        parser.error("--segments needs --window: it scores the answers along a recording")
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
    if args.output is not None and Path(args.output).suffix not in OUTPUT_SUFFIXES:
        parser.error(f"--output must end in {', '.join(OUTPUT_SUFFIXES)}")
    return args


def check_adaptation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command where the options about profiles do not fit together."""
    if not args.inputs and not args.enroll:
        parser.error("the following arguments are required: FILE_OR_FOLDER")
    if bool(args.enroll) != bool(args.speaker_profile):
        parser.error("--enroll and --speaker_profile need each other: what is enrolled, and where its profile goes")
    if args.enroll and args.adapt:
        parser.error("--enroll and --adapt do not go together: recordings beside --enroll are answered by its profile")
    if not (math.isfinite(args.relevance) and args.relevance >= 0):
        parser.error("--relevance must be a number of clips, 0 or more")
    if args.enroll and args.inputs:
        args.adapt = args.speaker_profile


def begin(output: str | None, items: list[Item], open_at: Callable[[str | None], Table]) -> tuple[Table, list[Item]]:
    """The table for the answers, and the recordings that are not answered in it yet."""
    if output is not None:
        join_parts(output, items, open_at)
    table = open_at(output)
    todo = [item for item in items if item.file not in table.done]
    if table.done:
        print(f"{table.path} holds {len(table.done)} files already; {len(todo)} are left to do.", file=sys.stderr)
    return table, todo


def predict(
    classify: MaxMViTAudioClassificationPipeline,
    todo: list[Item],
    table: Table,
    is_shown: bool = True,
    profiles: Mapping[str, SpeakerProfile] | None = None,
) -> list[str]:
    """Answers items into a table, closes it, and returns the files that cannot be answered. With `profiles` by file,
    each is answered relative to its own, if it has one."""
    failed: list[str] = []
    files = (item.file for item in todo)
    adapted = {} if profiles is None else {"speaker": [profiles.get(item.file) for item in todo]}
    answers = classify(files, **adapted)
    with tqdm(total=len(todo), unit="file", file=sys.stderr, disable=not is_shown) as progress:
        for item, answer in zip(todo, answers, strict=True):
            if isinstance(answer, dict):
                failed.append(item.file)
                progress.write(answer["error"], file=sys.stderr)
                progress.set_postfix(failed=len(failed), refresh=False)
            else:
                table.add(item, answer)
            progress.update()
    table.close()
    return failed


def summarise(items: list[Item], table: Table, n_failed: int, label_names: list[str]) -> None:
    print(f"{len(items)} files: {len(items) - n_failed} answered, {n_failed} failed.", file=sys.stderr)
    labelled = [(item.label, table.done[item.file]) for item in items if item.label and item.file in table.done]
    judged = [(label_names.index(label), label_names.index(answer)) for label, answer in labelled
              if answer in label_names]  # fmt: skip
    if judged:
        truth, answers = zip(*judged, strict=True)
        scores = scores_from_confusion(confusion_matrix(truth, answers, len(label_names)))
        unnamed = Counter(
            "silent" if answer is None else answer for _, answer in labelled if answer not in label_names
        )
        left_out = "".join(f" ({count} {kind} ones left out)" for kind, count in sorted(unnamed.items()))
        print(
            f"WA {scores['WA']:.4f}  UA {scores['UA']:.4f} on {len(judged)} labelled files{left_out}", file=sys.stderr
        )


def compare(references: dict[str, list[Segment]], table: Table, path: str) -> None:
    """Prints how well the answers along the recordings agree with the segments read from `path`."""
    scores = reference_scores(references, table.along, path)
    if len(scores) <= MOST_NAMED:
        for file, own in scores.items():
            print(f"{file}: {in_words(own)}", file=sys.stderr)
    if len(scores) > 1:
        print(f"{len(scores)} recordings: {in_words(pooled_scores(scores.values()))}", file=sys.stderr)


def command() -> int:
    return exit_code(main, "Stopped; with --output, the same command goes on from here.")
