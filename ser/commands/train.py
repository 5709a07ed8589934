"""Trains and tests MaxMViT-MLP on a corpus of emotional speech.

    python run_ser.py configs/demo.yaml                              a recipe
    python run_ser.py configs/ravdess.yaml --data_dir RAVDESS        a recipe, with options that override it
    accelerate launch run_ser.py --dataset_name AbstractTTS/IEMOCAP --output_dir out

A recipe is a YAML file of options, at any position. The output directory contains the trained model, which any user of
transformers can load, its scores on clips that were not used to choose it, and each clip's prediction.
"""

import sys

from ser.cli import handle_help
from ser.utils import count_processes, exit_code, wait_passively


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    handle_help(arguments, __doc__)
    count_processes()
    wait_passively()
    # Imported here, since torch takes seconds to import, and help and errors of misspelt options do not need it.
    from ser.cli import check_model, check_writable, parse_arguments
    from ser.data.prepare import read_corpus, set_up_logging, with_features
    from ser.distributed import run_lock
    from ser.models import make_config, make_feature_extractor
    from ser.training.run import check_runs, plan_folds, report_all_folds, train_and_test

    model_args, data_args, training_args = parse_arguments(arguments)
    set_up_logging(training_args)
    check_writable(training_args.output_dir)
    if not training_args.do_train:
        from ser.evaluation.evaluate import predict_only
        from ser.evaluation.report import format_report

        report = predict_only(model_args, data_args, training_args)
        print(f"{format_report(report)}\nReport and predictions: {training_args.output_dir}")
        return
    config = make_config(model_args)
    check_model(config, data_args, training_args)
    feature_extractor = make_feature_extractor(model_args)
    corpus = read_corpus(data_args, training_args)
    runs = plan_folds(corpus, data_args, training_args)
    check_runs(corpus, runs, config, feature_extractor, model_args, data_args)
    corpus = with_features(corpus, feature_extractor, data_args, training_args)
    for fold, fold_args in runs.items():
        with run_lock(fold_args):
            train_and_test(corpus, fold, config, feature_extractor, model_args, data_args, fold_args)
    if len(runs) > 1 and training_args.do_predict:
        report_all_folds(runs, training_args)


def command() -> int:
    return exit_code(
        main,
        "Interrupted. The same command, without --overwrite_output_dir, continues from the last checkpoint.",
        debug_flag="--log_level debug",
    )
