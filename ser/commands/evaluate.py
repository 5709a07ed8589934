"""Scores a checkpoint on any table of clips, and writes the same report as training.

    python evaluate_ser.py out/ravdess --dataset_name emodb --label_map default --output_dir out/on_emodb
    python evaluate_ser.py out/ravdess --dataset_name ravdess --protocol emobox --fold 1 --output_dir out/again

Without --protocol (or --test_speakers) all clips are scored. Speakers and clips that the checkpoint was trained on,
according to its splits.json, are refused. Classes are matched by name: the table may have fewer than the model.

With --adapt speaker or --adapt table, clips are classified relative to the mean features of all clips of their
speaker, or of the table. This uses no labels, but it uses all test clips; the protocol's name in the report says so.
"""

from ser.utils import count_processes, exit_code, wait_passively


def main(arguments: list[str] | None = None) -> None:
    count_processes()
    wait_passively()  # before torch is imported
    from ser.evaluation.evaluate import evaluate, parse_arguments
    from ser.evaluation.report import format_report

    checkpoint, clip_args, args = parse_arguments(arguments, __doc__)
    print(f"{format_report(evaluate(checkpoint, clip_args, args))}\nReport and predictions: {args.output_dir}")


def command() -> int:
    return exit_code(main, "Interrupted: no report was written.")
