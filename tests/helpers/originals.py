"""Small copies of real corpora as their authors distribute them, flags of a short training, and recomputed scores."""

from pathlib import Path

from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from tests.helpers.clips import write_sound


def write_ravdess(folder: Path, actors: int = 6) -> str:
    for actor in range(1, actors + 1):
        for emotion in range(1, 9):
            name = f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav"
            write_sound(folder / f"Actor_{actor:02d}" / name, seed=100 * actor + emotion)
    return str(folder)


def write_emodb(folder: Path, speakers: tuple[str, ...] = ("03", "08", "09")) -> str:
    for place, speaker in enumerate(speakers):
        for number, code in enumerate("WLEAFNT"):
            write_sound(folder / f"{speaker}a01{code}a.wav", seed=5000 + 100 * place + number)
    return str(folder)


TINY = [
    "--cqt_backbone", "none", "--mel_backbone", "convnet", "--mel_backbone_kwargs", '{"channels": [4, 4]}',
    "--image_size", "32", "--hidden_size", "4", "--imagenet_weights", "false", "--num_train_epochs", "1",
    "--feature_extractor_kwargs", '{"image_size": 32}', "--per_device_train_batch_size", "8", "--report_to", "none",
    "--save_strategy", "no", "--load_best_model_at_end", "false", "--preprocessing_num_workers", "1",
]  # fmt: skip


def recomputed(rows: list[dict]) -> dict[str, float]:
    """Computes the scores with scikit-learn; the prediction is the class with the highest probability in the table."""
    labels = [row["label"] for row in rows]
    predictions = [
        max((key for key in row if key.startswith("p_")), key=lambda key: float(row[key]))[2:] for row in rows
    ]
    return {
        "n_clips": len(rows),
        "WA": accuracy_score(labels, predictions),
        "UA": balanced_accuracy_score(labels, predictions) if {*predictions} <= {*labels} else None,
        "macro_f1": f1_score(
            labels, predictions, average="macro", labels=sorted({*labels, *predictions}), zero_division=0
        ),
        "weighted_f1": f1_score(labels, predictions, average="weighted", labels=sorted({*labels}), zero_division=0),
    }
