"""Settings of a run, and the state of its output directory: empty, holding a run to resume, or a finished one."""

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback
from transformers.utils import logging

from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.arguments import DataArguments
from ser.data.corpora.corpus import Corpus
from ser.data.protocols import VALIDATION_SHARE
from ser.distributed import broadcast_from_first, first_process_first
from ser.evaluation.metrics import SCORES
from ser.evaluation.report import REPORT_FILES
from ser.files import as_json, versions, write_json
from ser.models import EXTRACTOR_FIELDS, MODEL_FIELDS
from ser.training.arguments import SERTrainingArguments
from ser.training.checkpoints import (
    CHECKPOINT_LIST,
    checkpoint_of_first,
    damage_of,
    is_complete,
    last_checkpoint,
    list_checkpoints,
    remove,
    remove_leftovers,
    sound_checkpoint,
)
from ser.utils import DataError

logger = logging.get_logger(__name__)

RUN_FILE = "run.json"
DURATION_FILE = "duration.json"
KEEP_EVERY_S = 10
# Options that do not affect scores, or whose effect is recorded in the clips of splits.json.
IGNORED_DATA = {
    *("dataset_name", "data_dir", "dataset_config_name", "dataset_revision", "cache_dir"),
    *("train_split_name", "eval_split_name", "test_split_name"),
    *("audio_column_name", "label_column_name", "speaker_column_name"),
    *("protocol", "fold", "test_speakers", "on_bad_audio", "preprocessing_num_workers", "feature_cache_gib"),
    *("scores_from", "label_map", "test_dataset_name", "test_data_dir"),
}
IGNORED_TRAINING = re.compile(
    "output_dir|overwrite_output_dir|do_.*|(per_device_)?eval_(batch_size|accumulation_steps|use_gather_object)|"
    "logging_.*|log_.*|disable_tqdm|report_to|run_name|project|trackio_.*|save_total_limit|save_on_each_node|"
    "enable_jit_checkpoint|push_to_hub|hub_.*|use_cpu|dataloader_.*|ddp_.*|fsdp.*|deepspeed|accelerator_config|"
    "parallelism_config|(activation|gradient)_checkpointing.*|torch_empty_cache_steps|remove_unused_columns|debug|"
    "skip_memory_metrics|local_rank|resume_from_checkpoint|restore_callback_states_from_checkpoint|ignore_data_skip"
)
# Fields of the model's configuration that do not affect training, or that follow from clips and options.
IGNORED_MODEL = {"speech_encoder", "max_clip_s", "window_s", "feature_statistics", "familiarity"}
FINISHED_MARK = "FINISHED"
# Options in which two models of one recipe may differ: seeds, additional tests, and calibration.
NOT_RECIPE = {"seed", "data_seed", "test_window", "test_hop", "calibrate"}


def resume_or_start(
    output_dir: str | os.PathLike, overwrite: bool = False
) -> tuple[Literal["fresh", "resume", "finished"], str | None]:
    """
    Determines the state of an output directory.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run; it need not exist.
        overwrite (`bool`, defaults to False): Whether to delete the checkpoints of an earlier run, and start afresh.

    Returns:
        `("fresh", None)`, `("resume", checkpoint)` for [`SERTrainer.train`]'s `resume_from_checkpoint`, or
        `("finished", newest checkpoint)` if [`mark_finished`] was called. The first of several processes decides.
        Damaged checkpoints are skipped with a warning, see [`sound_checkpoint`].

    Raises:
        DataError: All checkpoints of an unfinished run are damaged.
    """
    folder = Path(output_dir)
    if overwrite:
        (folder / FINISHED_MARK).unlink(missing_ok=True)
        remove_leftovers(folder)
        for checkpoint in list_checkpoints(folder).values():
            remove(checkpoint)
        (folder / CHECKPOINT_LIST).unlink(missing_ok=True)
    if (folder / FINISHED_MARK).exists():
        return "finished", last_checkpoint(folder)
    newest = sound_checkpoint(folder)
    return ("resume", newest) if newest else ("fresh", None)


def mark_finished(output_dir: str | os.PathLike) -> None:
    """Marks a run as complete; to be called last by the main process, when everything else has been written."""
    (Path(output_dir) / FINISHED_MARK).touch()


def run_settings(
    config: MaxMViTConfig,
    feature_extractor: MaxMViTFeatureExtractor,
    corpus: Corpus,
    data_args: DataArguments,
    args: SERTrainingArguments,
    start: str,
) -> dict[str, dict[str, Any]]:
    """
    Returns the content of `run.json`: everything that determines the result of a run, except its clips (which are in
    `splits.json`). Instead of paths, it contains descriptions of their content.

    Args:
        start (`str`): Result of [`starting_weights`] for the model.
    """
    training = args.to_dict()
    return {
        "corpus": {"name": corpus.name, "revision": corpus.revision, "options": corpus.options},
        "data": {name: value for name, value in dataclasses.asdict(data_args).items() if name not in IGNORED_DATA},
        "feature_extractor": {name: getattr(feature_extractor, name) for name in EXTRACTOR_FIELDS},
        "model": {name: getattr(config, name) for name in (*MODEL_FIELDS, "id2label") if name not in IGNORED_MODEL}
        | {"starting_weights": start},
        "training": {name: training[name] for name in training if not IGNORED_TRAINING.fullmatch(name)}
        | {"processes": args.world_size},
        "versions": {name: number for name, number in versions().items() if name != "python"},
    }


def earlier_run(args: SERTrainingArguments, settings: dict[str, dict[str, Any]], splits: dict) -> str | None:
    """
    Returns the checkpoint to resume from, None to start afresh, or "finished", as found by the first process. If a run
    starts afresh, its `run.json` and `splits.json` are written.

    Raises:
        DataError: The folder holds a run with other settings or clips, whose weights may have been trained on clips
            that are tested here; the message names the differences.
    """
    found = None
    with first_process_first(args, "looking for an earlier run", local=False):
        if args.process_index == 0:
            found = _find_earlier_run(args, settings, splits)
    if broadcast_from_first(args, found == "finished"):
        return "finished"
    return args.resume_from_checkpoint or checkpoint_of_first(args, found)


def _find_earlier_run(args: SERTrainingArguments, settings: dict[str, dict[str, Any]], splits: dict) -> str | None:
    folder = Path(args.output_dir)
    if args.overwrite_output_dir:
        for name in (*REPORT_FILES, RUN_FILE):
            (folder / name).unlink(missing_ok=True)
    state, checkpoint = resume_or_start(folder, args.overwrite_output_dir)
    if args.resume_from_checkpoint:
        check_named_checkpoint(args, settings, splits)
    if state == "fresh":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DURATION_FILE).unlink(missing_ok=True)
        write_json(folder / RUN_FILE, settings)
        write_json(folder / "splits.json", splits)
        return None
    before = _read(folder / RUN_FILE)
    if before is None:
        source = checkpoint if state == "resume" else folder
        config, extractor = MaxMViTConfig.from_pretrained(source), MaxMViTFeatureExtractor.from_pretrained(source)
        before = {
            "model": {name: getattr(config, name) for name in (*MODEL_FIELDS, "id2label")},
            "feature_extractor": {name: getattr(extractor, name) for name in EXTRACTOR_FIELDS},
        }
        logger.warning(
            f"{folder} holds an old run without {RUN_FILE}: only its model, feature extractor and clips are compared."
        )
    _refuse_differing(
        folder, [*_differences(before, settings), *_other_clips(_read(folder / "splits.json") or {}, splits)]
    )
    return "finished" if state == "finished" else checkpoint


def _refuse_differing(folder: Path, differing: Sequence[str]) -> None:
    if differing:
        raise DataError(
            f"{folder} holds a run with other settings: {'; '.join(differing)}. Use the same settings, name another "
            "--output_dir, or start over in this one with --overwrite_output_dir."
        )


def check_output_folder(args: SERTrainingArguments, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Compares the settings of a run with those of the run in its output directory. Clips are not compared, since some
    may still be left out.

    Raises:
        DataError: The folder holds a run with other settings; the message names the differences.
    """
    folder = Path(args.output_dir)
    is_started = (folder / FINISHED_MARK).exists() or last_checkpoint(folder) is not None
    if is_started and not args.overwrite_output_dir:
        _refuse_differing(folder, _differences(_read(folder / RUN_FILE) or {}, settings))


def check_named_checkpoint(
    args: SERTrainingArguments, settings: Mapping[str, Mapping[str, Any]], splits: dict | None = None
) -> None:
    """
    Compares the settings of a run with those of the checkpoint given by `--resume_from_checkpoint`.

    Args:
        splits (`dict`, *optional*): The clips of the run, to compare them too.

    Raises:
        DataError: It is not a checkpoint of this command, or has other settings or clips; the message names the
            differences.
    """
    checkpoint = Path(args.resume_from_checkpoint or "")
    folder = checkpoint.resolve().parent
    if not is_complete(checkpoint) or not (folder / RUN_FILE).is_file():
        raise DataError(
            f"--resume_from_checkpoint {checkpoint} is not a checkpoint of this command: name a checkpoint-N in the "
            "output directory of a run, or start a new run from its weights with --model_name_or_path."
        )
    if damage := damage_of(checkpoint):
        raise DataError(f"--resume_from_checkpoint {checkpoint}: {damage}. Name an earlier checkpoint.")
    differing = _differences(_read(folder / RUN_FILE) or {}, settings)
    if splits is not None:
        differing += _other_clips(_read(folder / "splits.json") or {}, splits)
    if differing:
        raise DataError(
            f"--resume_from_checkpoint {checkpoint} is of a run with other settings: {'; '.join(differing)}. Use the "
            "same settings, or start a new run from its weights with --model_name_or_path."
        )


def check_folds(folders: Sequence[str | os.PathLike]) -> None:
    """
    Checks that folds were trained with the same settings, since their mean would be meaningless otherwise.

    Raises:
        DataError: Settings differ; the message names the differences.
    """
    kept = {folder: settings for folder in map(Path, folders) if (settings := _read(folder / RUN_FILE)) is not None}
    for folder, settings in kept.items():
        first = next(iter(kept))
        if differing := _differences(kept[first], settings):
            raise DataError(
                f"{folder} and {first} are folds with different settings: {'; '.join(differing)}. Remove one of the "
                "two folders, and run the command again to train it anew."
            )


def fold_folder(output_dir: str | os.PathLike, fold: int) -> Path:
    """Returns the folder of one fold in the output directory of a run with several folds."""
    return Path(output_dir) / f"fold_{fold}"


def quoted_scores(folders: Sequence[str | os.PathLike], settings: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    """
    Returns scores of other models with the same recipe, for the report of a model without a test set.

    Args:
        folders: Output directories of finished runs with `--fold all`.
        settings: Settings of this model, from [`run_settings`].

    Returns:
        For each folder `protocol`, `seed`, `models` (their number), `measured_on` (a description), `mean` and `std`
        (score -> number) over them, and `pooled`: each score over all their test clips, `n_clips` and `intervals`.

    Raises:
        DataError: A folder holds no pooled scores of folds that keep speakers apart, or has another recipe, corpus or
            classes; the message names the differences.
    """
    return [_quoted(Path(folder), settings) for folder in folders]


def _quoted(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> dict:
    summary = _read(folder / "metrics.json") or {}
    if not {"folds", "mean", "std", "pooled"} <= summary.keys():
        raise DataError(
            f"--scores_from {folder} holds no pooled scores: name the output directory of a finished run with "
            "--fold all."
        )
    if not summary["speaker_disjoint"]:
        raise DataError(f"--scores_from {folder}: its folds share speakers; name folds that keep speakers apart.")
    folds = [fold_folder(folder, fold) for fold in range(1, len(summary["folds"]) + 1)]
    kept = [_read(fold / RUN_FILE) for fold in folds]
    for fold, theirs in zip(folds, kept, strict=True):
        if theirs is None:
            raise DataError(
                f"--scores_from {folder}: {fold} has no {RUN_FILE} with the settings of its recipe; leave it out."
            )
        if differing := _differences(_recipe(theirs), _recipe(settings)):
            raise DataError(
                f"--scores_from {folder} is of another recipe, whose scores do not apply to this model: "
                f"{'; '.join(differing)}. Use the same settings, or leave it out."
            )
    pooled = summary["pooled"]
    return {
        "protocol": summary["protocol"],
        "seed": summary["seed"],
        "models": len(folds),
        "measured_on": f"{len(folds)} models trained with the same recipe, each tested on unseen speakers",
        "mean": summary["mean"],
        "std": summary["std"],
        "pooled": {name: pooled[name] for name in ("n_clips", *SCORES, "intervals")},
    }


def _recipe(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the settings that make up a recipe: all except seeds, additional tests and versions."""
    recipe = {
        section: {name: value for name, value in settings[section].items() if name not in NOT_RECIPE}
        for section in ("corpus", "data", "feature_extractor", "model", "training")
    }
    if recipe["data"]["validation_share"] is None:
        recipe["data"]["validation_share"] = VALIDATION_SHARE
    return recipe


class RunClock(TrainerCallback):
    """
    Measures the duration of a run, including earlier, interrupted sessions, and stores it in the run's folder at every
    checkpoint and every ten seconds.

    Args:
        folder: Folder of the run.
        started (`float`): `time.monotonic()` at the start of this session.
    """

    def __init__(self, folder: str | os.PathLike, started: float):
        self.path = Path(folder) / DURATION_FILE
        self.before = 0.0
        if self.path.exists():
            try:
                before = float(json.loads(self.path.read_bytes())["seconds"])
                if not 0 <= before < math.inf:
                    raise ValueError("not a time")
                self.before = before
            except (OSError, ValueError, TypeError, LookupError):
                logger.warning(f"{self.path} cannot be read: the time of earlier sessions of this run is not counted.")
        self.started = self.kept = started

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def keep(self) -> None:
        self.kept = time.monotonic()
        write_json(self.path, {"seconds": round(self.seconds(), 1)})

    def on_step_end(self, args, state, control, **kwargs):
        if args.should_save and time.monotonic() - self.kept > KEEP_EVERY_S:
            self.keep()

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:
            self.keep()


def _read(path: Path) -> dict | None:
    """Returns the content of a JSON file of a run, or None if it does not exist."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): restore it from a copy, or remove it.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object: restore it from a copy, or remove it.")
    return content


def _differences(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """Returns `setting: before -> now` for settings that are in both and differ."""
    before, now = as_json(before), as_json(now)
    return [
        f"{name}: {_short(before[section][name])} -> {_short(value)}"
        for section in now
        for name, value in now[section].items()
        if name in before.get(section, {}) and before[section][name] != value
    ]


def _other_clips(before: dict, now: dict) -> list[str]:
    """Describes the differences between two tables of splits."""
    before, now = as_json(before), as_json(now)
    found = [
        f"{name}: {_short(before.get(name))} -> {_short(now[name])}" for name in now if before.get(name) != now[name]
    ]
    if before.get("clips") == now["clips"]:
        return found
    places = [{clip["file"]: clip for clip in table.get("clips", ())} for table in (before, now)]
    changed = [file for file in places[0].keys() & places[1].keys() if places[0][file] != places[1][file]]
    found = [text for text in found if not text.startswith("clips: ")]
    return [
        *found,
        f"clips: {len(places[0]):,} -> {len(places[1]):,}, {len(changed):,} of them in another part or class",
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
