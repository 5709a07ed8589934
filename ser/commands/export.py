"""
Exports a model to one ONNX file, from waveform to emotion, that needs neither PyTorch nor this project:

    python export_ser.py MODEL OUT.onnx [--window 3 | --dynamic] [--without_front_end] [--quantize int8|fp16]

The input is `waveform`, float32 (batch, samples), mono, at the rate in the file's metadata; for a model with a speech
encoder, one clip: (1, samples). The outputs are `probabilities` and `logits` (batch, labels), `embedding` (batch,
features), and the model's inputs: images, and the samples or log-Mel frames of a speech encoder. OUT.pt2, beside it,
contains the same model in float32 as a program of torch.export. The probabilities of the file in onnxruntime are
compared with those of the pipeline on synthesised clips; if they differ, no file is written. Needs
requirements-export.txt.
"""

import argparse
import importlib.util
import logging
import warnings
from pathlib import Path

from ser.files import check_writable
from ser.utils import UsageError, exit_code, wait_passively

LONGEST_S = 600.0
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} cannot be imported: pip install -r requirements-export.txt")
    for path in (args.output, args.output.with_suffix(".pt2")):
        check_writable(path)
    wait_passively()  # before torch is imported
    from ser.export.onnx import Form, export
    from ser.models import load_pipeline

    # The exporters warn about their own internals, which users cannot change.
    warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|copyreg|onnxruntime")
    logging.disable(logging.WARNING)
    form = Form(None if args.dynamic else args.window, not args.without_front_end, args.quantize, args.opset)
    difference = export(load_pipeline(args.model, "cpu"), args.output, form)
    size = args.output.stat().st_size / 2**20
    print(f"{args.output}: {size:.1f} MiB, probabilities within {difference:.1e} of the pipeline's")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, or its name on the Hugging Face Hub")
    parser.add_argument("output", type=Path, help="file to write; its name must end in .onnx")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--window", type=float, default=3.0, help="length of each waveform in seconds (default 3)")
    length.add_argument("--dynamic", action="store_true", help="accept waveforms of any length of at least 0.1 s")
    parser.add_argument(
        "--without_front_end", action="store_true", help="take images from the feature extractor instead of waveforms"
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "fp16"),
        help="store the model's weights in 8 or 16 bits",
    )
    parser.add_argument(
        "--opset", type=int, default=20, choices=range(18, 24), help="version of the ONNX operator set (default 20)"
    )
    args = parser.parse_args(arguments)
    if args.output.suffix != ".onnx":
        parser.error("the file to write must end in .onnx")
    if not args.output.parent.is_dir():
        parser.error(f"there is no folder {args.output.parent}")
    if not 0.1 <= args.window <= LONGEST_S:
        parser.error(f"--window must be from 0.1 to {LONGEST_S:g} seconds")
    return args


def command() -> int:
    return exit_code(main, "Interrupted: nothing was written.")
