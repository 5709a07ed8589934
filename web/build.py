"""
Puts into web/vendor what the page needs and the repository does not hold; then any server of files shows the page:

    python -m web.build [MODEL]
    python -m http.server --directory web

onnxruntime-web comes from the npm registry that npm is configured for, in the version below; the model, by default the
one that comes with the code, is exported with its front end. Needs npm and requirements-export.txt.
"""

import argparse
import base64
import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

from ser.commands import exit_code
from ser.environment import wait_passively
from ser.errors import UsageError

VENDOR = Path(__file__).parent / "vendor"
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LARGEST_MB = 12  # of a model that visitors have to wait for


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint (default: the one that comes with the code)")
    args = parser.parse_args(arguments)
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} cannot be imported: pip install -r requirements-export.txt")
    VENDOR.mkdir(exist_ok=True)
    fetch_runtime(VENDOR)
    write_model(args.model, VENDOR)
    size = sum(path.stat().st_size for path in VENDOR.iterdir()) / 1e6
    print(f"{VENDOR}: {size:.1f} MB. Now: python -m http.server --directory {VENDOR.parent}")


def fetch_runtime(folder: Path) -> None:
    """
    Writes the files of onnxruntime-web that run a graph in WebAssembly.

    Raises:
        UsageError: There is no npm, it cannot fetch the package, or the package is not the one that was tried.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError("npm cannot be found, and brings onnxruntime-web: install Node.js.")
    with tempfile.TemporaryDirectory() as download:
        command = [npm, "pack", "--silent", PACKAGE, "--pack-destination", download]
        packed = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(download).glob("*.tgz"))
        if packed.returncode or len(archives) != 1:
            raise UsageError(f"npm cannot fetch {PACKAGE}: {packed.stderr.strip() or packed.stdout.strip()}")
        digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if digest != SHA512:
            raise UsageError(f"{PACKAGE} is not the package that was tried: its SHA-512 is {digest}, not {SHA512}.")
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())


def write_model(model: str | None, folder: Path) -> None:
    """
    Writes `model.onnx`, for waveforms of any length, its weights in half precision, and `model.json`: what the page
    has to know of it, as onnxruntime-web does not tell a file's metadata.

    Raises:
        DataError: The model cannot be exported.
        UsageError: It cannot be found, or is larger than a page should be.
    """
    wait_passively()  # before torch is imported
    import onnx

    from ser.export import Form, export
    from ser.figures import frequency_ticks
    from ser.models import load_pipeline

    warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|copyreg|onnxruntime")
    logging.disable(logging.WARNING)
    classify = load_pipeline(model, "cpu")
    path = folder / "model.onnx"
    export(classify, path, Form(window_s=None, front_end=True, quantize="fp16", opset=20))
    path.with_suffix(".pt2").unlink()
    size = path.stat().st_size / 1e6
    if size > LARGEST_MB:
        path.unlink()
        raise UsageError(f"{classify.model.name_or_path} is {size:.0f} MB as a file, and {LARGEST_MB} are the most.")
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    extractor, ticks = classify.feature_extractor, frequency_ticks(classify.feature_extractor)
    about = {
        "labels": json.loads(metadata["labels"]),
        "licence": metadata["licence"],
        "samplingRate": int(metadata["sampling_rate"]),
        "pictures": [
            {
                "name": f"{name}_values",
                "title": f"{title} spectrogram",
                "mean": extractor.image_mean[0],
                "std": extractor.image_std[0],
                "ticks": list(ticks[title].items()),
            }
            for name, title in (("cqt", "CQT"), ("mel", "Mel"))
            if name in classify.model.branches()
        ],
    }
    (folder / "model.json").write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")


def command() -> int:
    return exit_code(main, "Interrupted: the page is not complete.")


if __name__ == "__main__":
    sys.exit(command())
