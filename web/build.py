"""
Writes the files of the page that are not in the repository to web/vendor, for any static file server:

    python -m web.build [MODEL...]
    python -m http.server --directory web

onnxruntime-web comes from npm's configured registry, in the version below. The models, by default those that come with
the code, are exported with their front ends. The page loads the first one and offers the others.
Needs npm and requirements-export.txt.
"""

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ser.utils import UsageError, exit_code, wait_passively

ROOT = Path(__file__).parents[1]
VENDOR = ROOT / "web" / "vendor"
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SHIPPED = ("ravdess_small", "ravdess")  # in weights/, the small one first
LARGEST_MB = 40  # maximum size of a model, which visitors have to download


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = [str(path) for name in SHIPPED if (path := ROOT / "weights" / name).is_dir()]
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", default=shipped, help="default: those that come with the code"
    )
    args = parser.parse_args(arguments)
    names = [Path(model).name for model in args.models]
    if len({*names}) < len(names):
        parser.error(f"the models need different names, got {', '.join(names)}")
    VENDOR.mkdir(exist_ok=True)
    fetch_runtime(VENDOR)
    models = [write_model(model, VENDOR) for model in args.models]
    (VENDOR / "models.json").write_text(json.dumps(models, ensure_ascii=False, indent=1), encoding="utf-8")
    size = sum(path.stat().st_size for path in VENDOR.iterdir()) / 1e6
    print(f"{VENDOR}: {size:.1f} MB. Now: python -m http.server --directory {VENDOR.parent}")


def fetch_runtime(folder: Path) -> None:
    """
    Writes the files of onnxruntime-web that run a graph in WebAssembly.

    Raises:
        UsageError: npm is missing or cannot fetch the package, or the package is not the one that was tested.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError("npm cannot be found, but is needed to fetch onnxruntime-web: install Node.js.")
    with tempfile.TemporaryDirectory() as download:
        command = [npm, "pack", "--silent", PACKAGE, "--pack-destination", download]
        packed = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(download).glob("*.tgz"))
        if packed.returncode or len(archives) != 1:
            raise UsageError(f"npm cannot fetch {PACKAGE}: {packed.stderr.strip() or packed.stdout.strip()}")
        digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if digest != SHA512:
            raise UsageError(f"{PACKAGE} is not the package that was tested: its SHA-512 is {digest}, not {SHA512}.")
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())


def write_model(model: str, folder: Path) -> dict[str, Any]:
    """
    Writes a model as `NAME.onnx`, for waveforms of any length, with weights in half precision.

    Returns:
        The model's entry in models.json, since onnxruntime-web does not expose a file's metadata.

    Raises:
        UsageError: The model cannot be exported (export_ser.py prints why), or is too large for a page.
    """
    path = folder / f"{Path(model).name}.onnx"
    exporter = [sys.executable, str(ROOT / "export_ser.py"), model, str(path), "--dynamic", "--quantize", "fp16"]
    if subprocess.run(exporter).returncode:
        raise UsageError(f"{model} cannot be exported, so the page is not complete.")
    path.with_suffix(".pt2").unlink()  # browsers cannot use it
    size = path.stat().st_size / 1e6
    if size > LARGEST_MB:
        path.unlink()
        raise UsageError(f"{model} is {size:.0f} MB as a file, more than the maximum of {LARGEST_MB} MB.")

    wait_passively()  # before torch is imported
    import onnx

    from ser.evaluation.plots import frequency_ticks
    from ser.models import load_feature_extractor

    graph = onnx.load(path)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    if int(metadata["classes"]) < len(json.loads(metadata["labels"])):
        path.unlink()
        raise UsageError(f"{model} estimates dimensions, and the page shows emotions only: name another model.")
    images = {output.name for output in graph.graph.output}
    extractor = load_feature_extractor(model)
    return {
        "name": path.stem,
        "megabytes": round(size),
        "labels": json.loads(metadata["labels"]),
        "licence": metadata["licence"],
        "samplingRate": int(metadata["sampling_rate"]),
        "maxClipS": float(metadata["max_clip_s"]),
        "windowS": float(metadata["window_s"]),
        "images": [
            {
                "name": f"{title.lower()}_values",
                "title": f"{title} spectrogram",
                "mean": extractor.normalization(title.lower())[0][0],
                "std": extractor.normalization(title.lower())[1][0],
                "ticks": list(ticks.items()),
            }
            for title, ticks in frequency_ticks(extractor).items()
            if f"{title.lower()}_values" in images
        ],
    }


def command() -> int:
    return exit_code(main, "Interrupted: the page is not complete.")


if __name__ == "__main__":
    sys.exit(command())
