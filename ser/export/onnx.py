"""Exports checkpoints to files that run without this project: an ONNX graph and a PyTorch program."""

import copy
import json
import math
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import soxr
import torch
import yaml
from onnx import numpy_helper
from onnx_ir.passes import common as passes
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from torch import nn
from torch.export import Dim, ExportedProgram

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import SpeechEncoder
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.data.corpora.demo import EMOTIONS, SAMPLING_RATE, synthesize_clip
from ser.export.front_end import FrontEnd, size_of
from ser.files import atomic_write
from ser.utils import DataError

SHORTEST_S = 0.1  # minimum length in a file for waveforms of any length
APPLY = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
}  # to the logits, by problem type; otherwise softmax
# Maximum difference from the probabilities of the pipeline; quantized files differ by more than rounding.
TOLERANCE = {None: 1e-3, "fp16": 1e-2, "int8": 0.1}
LENGTHS_S = (0.5, 1.7, 5.0, 10.0)  # lengths of the clips that check a file for waveforms of any length
RULES = [
    rules.fuse_batchnorm_into_conv_rule,  # before weights are quantized
    rules.fuse_batchnorm_into_gemm_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.no_op_dynamic_scatter_nd_rule,  # MViTv2 scatters what it adds to its attention over all of it
]
MIN_HALVED = 1024  # smaller weights stay in float32


@dataclass
class Form:
    """
    Describes the file to write.

    Args:
        window_s (`float`, *optional*): Length of every waveform in seconds; None for any length.
        front_end (`bool`): Whether the inputs are waveforms, rather than images from the feature extractor.
        quantize (`str`, *optional*): `"fp16"`: the model's weights in half precision, with computation in float32.
            `"int8"`: its matrix products and convolutions in 8 bits. The front end stays in float32.
        opset (`int`): Version of the ONNX operator set.
    """

    window_s: float | None
    front_end: bool
    quantize: str | None
    opset: int


class OneClipSpeechEncoder(SpeechEncoder):
    """
    [`SpeechEncoder`] for one clip from [`Speech`], without the loops over clips and pieces, which a graph cannot
    contain: the pieces of a clip are a batch, and only the last one is padded.
    """

    @classmethod
    def of(cls, branch: SpeechEncoder, config: MaxMViTConfig) -> "OneClipSpeechEncoder":
        """Returns the branch of a model with this configuration, with the same weights."""
        own = cls(config.speech_encoder_config or {}, config.speech_pooling, config.speech_layers).eval()
        own.load_state_dict(branch.state_dict(), assign=True)
        return own

    def checked(
        self, input_values: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the inputs unchanged."""
        assert input_values is not None
        return input_values, attention_mask

    def _layers(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
        if self.piece is None:
            states = self._run(values, None)
            return states, [states[0].shape[1]]
        lengths = mask[0].sum(-1)
        states = [state.flatten(0, 1) for state in self._run_whisper(values[0], lengths)]
        frames = size_of(((lengths + 1) // 2).sum(), 1, states[0].shape[0])
        return [state[None, :frames] for state in states], [frames]


class WholeModel(nn.Module):
    """
    Combines an optional front end, the model, and the function from logits to scores, as one module in float32.

    Returns `probabilities` (of classes; the values of dimensions) and `logits`, `(B, num_labels)`, and `embedding`,
    `(B, features)`, the pooled features of the branches. With a front end, also returns its values and `shown`, under
    the same names, for display.
    """

    def __init__(self, classify: MaxMViTAudioClassificationPipeline, has_front_end: bool):
        super().__init__()
        self.model = copy.deepcopy(classify.model).float()
        branches = self.model.branches()
        if "speech" in branches:
            self.model.base_model.speech_encoder = OneClipSpeechEncoder.of(branches["speech"], self.model.config)
        self.names = [self.model.config.inputs_of(name)[0] for name in branches]
        self.front_end = FrontEnd(classify.feature_extractor, branches) if has_front_end else None
        self.num_classes = self.model.config.num_classes
        self.apply_name = APPLY.get(self.model.config.problem_type, "softmax")

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        made = dict(zip(self.names, inputs, strict=True)) if self.front_end is None else self.front_end(*inputs)
        shown = {name: made.pop(name) for name in ("shown",) if name in made}
        pooled: list[torch.Tensor] = []
        hook = self.model.base_model.register_forward_hook(lambda module, args, out: pooled.append(out.pooler_output))
        logits = self.model(**made).logits
        hook.remove()
        softmax = (logits[:, : self.num_classes] / self.model.config.temperature).softmax(-1)
        scores = {"softmax": softmax, "sigmoid": logits.sigmoid(), "none": logits.clone()}
        probabilities = scores[self.apply_name]
        if 0 < self.num_classes < logits.shape[1]:  # the dimensions follow the classes
            probabilities = torch.cat([probabilities, logits[:, self.num_classes :]], dim=1)
        outputs = {"probabilities": probabilities, "logits": logits, "embedding": pooled[0]}
        return outputs | ({name: made[name] for name in self.names} | shown if shown else {})


def export(classify: MaxMViTAudioClassificationPipeline, path: Path, form: Form) -> float:
    """
    Writes an ONNX file, and beside it the same model in float32 as a program of `torch.export`, with the suffix .pt2.
    Neither is kept unless the ONNX file gives the pipeline's probabilities in onnxruntime.

    Returns:
        The largest difference of a probability from the pipeline's.

    Raises:
        DataError: The model cannot be exported, or the probabilities of the file differ from the pipeline's.
    """
    program, graph = build(classify, form)
    with atomic_write(path.with_suffix(".pt2")) as program_path, atomic_write(path) as graph_path:
        save(graph, graph_path, form.quantize)
        difference = largest_difference(graph_path, classify, form)
        if not difference <= TOLERANCE[form.quantize]:
            raise DataError(
                f"{path} is not written: in onnxruntime its probabilities differ from the pipeline's by up to "
                f"{difference:.2g}, and at most {TOLERANCE[form.quantize]:g} is tolerated. "
                + ("Leave out --quantize." if form.quantize else "Please report this model's configuration.")
            )
        with open(program_path, "wb") as file:  # torch.export.save insists on the suffix .pt2 for paths
            torch.export.save(program, file)
    return difference


def build(classify: MaxMViTAudioClassificationPipeline, form: Form) -> tuple[ExportedProgram, onnx.ModelProto]:
    """
    Converts a checkpoint to a program and to a graph, both in float32.

    Raises:
        DataError: The model cannot be exported.
    """
    _check(classify, form)
    with torch.no_grad():
        module = WholeModel(classify, form.front_end).eval()
        program = _traced(module, _examples(classify, form), form)
        graph = _as_onnx(program, module, form)
    onnx.helper.set_model_props(graph, _description(classify, form))
    return program, graph


def save(graph: onnx.ModelProto, path: Path, quantize: str | None) -> None:
    """Writes a graph from [`build`], quantized as in [`Form`], without changing the graph."""
    if quantize == "int8":
        copy = onnx.ModelProto.FromString(graph.SerializeToString())  # the quantizer modifies its input
        quantize_dynamic(copy, path, weight_type=QuantType.QUInt8, nodes_to_exclude=front_end_nodes(graph))
    else:
        onnx.save(_halved(graph) if quantize == "fp16" else graph, path)


def largest_difference(path: Path, classify: MaxMViTAudioClassificationPipeline, form: Form) -> float:
    """Returns the largest difference between the probabilities of a file in onnxruntime and of the pipeline, for
    synthesised clips in batches of one, two and three, or one by one if the model has a speech encoder."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    config, extractor = classify.model.config, classify.feature_extractor
    labels = [config.id2label[index] for index in range(config.num_labels)]
    largest = 0.0
    for clips in _clips(extractor.sampling_rate, form):
        predictions = classify(
            list(clips), sampling_rate=extractor.sampling_rate, window_s=None, silence_db=None, top_k=None
        )
        expected = [[row["score"] for row in sorted(rows, key=lambda row: labels.index(row["label"]))]
                    for rows in predictions]  # fmt: skip
        inputs = {"waveform": clips}
        if not form.front_end:
            images = extractor(list(clips), sampling_rate=extractor.sampling_rate)
            inputs = {f"{name}_values": images[f"{name}_values"] for name in classify.model.branches()}
        if config.speech_encoder is None:
            (own,) = session.run(["probabilities"], inputs)
        else:
            own = np.concatenate([session.run(["probabilities"], {"waveform": clip[None]})[0] for clip in clips])
        differences = np.abs(own - np.array(expected))
        largest = max(largest, float(differences.max()) if np.isfinite(differences).all() else math.inf)
    return largest


def _check(classify: MaxMViTAudioClassificationPipeline, form: Form) -> None:
    extractor, config = classify.feature_extractor, classify.model.config
    if config.speech_encoder is not None and not form.front_end:
        raise DataError(
            f"a model with speech_encoder={config.speech_encoder!r} is exported with its front end only, since the "
            "inputs of the encoder depend on which part of the clip is speech: leave out --without_front_end."
        )
    if config.filter_bank == "learnable":
        raise DataError(
            "a model with filter_bank='learnable' cannot be exported: the front end of a file has fixed filters. "
            "Export a model with filter_bank='fixed'."
        )
    if extractor.backend != "torch":
        raise DataError(
            f"the feature extractor has backend={extractor.backend!r}, whose approximate CQT cannot be exported: set "
            "it to 'torch' in preprocessor_config.json."
        )
    shortest = extractor.min_length / extractor.sampling_rate
    if form.front_end and form.window_s is None and shortest > SHORTEST_S:
        raise DataError(
            f"the feature extractor pads clips to {shortest:.2f} s with zeros (min_length), which a file for any "
            "length cannot do: give --window."
        )


def _examples(classify: MaxMViTAudioClassificationPipeline, form: Form) -> tuple[torch.Tensor, ...]:
    """Returns inputs of two clips; of one for a speech encoder, which fixes the batch size to 1."""
    extractor = classify.feature_extractor
    if form.front_end:
        batch = 1 if classify.model.config.speech_encoder is not None else 2
        return (torch.zeros(batch, samples_of(form.window_s or 3.0, extractor.sampling_rate)),)
    height, width = np.broadcast_to(extractor.image_size, 2).tolist()
    return tuple(torch.zeros(2, 3, height, width) for _ in classify.model.branches())


def samples_of(seconds: float, sampling_rate: int) -> int:
    """Returns the number of samples of a window, as in the pipeline."""
    return max(1, round(seconds * sampling_rate))


def _traced(module: WholeModel, examples: tuple[torch.Tensor, ...], form: Form) -> ExportedProgram:
    """Traces the module, for any number of clips (one for a speech encoder) and, if requested, of any length."""
    config = module.model.config
    sizes: dict[int, Any] = {} if config.speech_encoder is not None else {0: Dim("batch", min=1)}
    if form.front_end and form.window_s is None:
        assert module.front_end is not None
        sizes[1] = Dim("samples", min=samples_of(SHORTEST_S, module.front_end.sampling_rate))
    try:
        return torch.export.export(
            module,
            examples,
            dynamic_shapes=(tuple(dict(sizes) for _ in examples),),
            # It cannot prove that 256 (n + 8) is divisible by n + 8, and would fix the length.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except RuntimeError as error:  # base class of the errors of torch's exporters
        raise DataError(_unexportable(config, error)) from error


def _unexportable(config: Any, error: Exception) -> str:
    names = ", ".join(
        f"{field}={value!r}"
        for field in ("cqt_backbone", "mel_backbone", "speech_encoder", "speech_pooling", "fusion", "head")
        if (value := getattr(config, field)) is not None
    )
    return f"a model of {names} cannot be exported: {str(error).strip().splitlines()[0]}"


def _as_onnx(program: ExportedProgram, module: WholeModel, form: Form) -> onnx.ModelProto:
    """Converts the program to a graph whose inputs and outputs have their public names."""
    inputs = ["waveform"] if form.front_end else module.names
    outputs = ["probabilities", "logits", "embedding", *([*module.names, "shown"] if form.front_end else [])]
    try:
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=form.opset, input_names=inputs, output_names=outputs, verbose=False,
            optimize=False,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(_unexportable(module.model.config, error)) from error
    assert exported is not None
    _simplify(exported.model)
    graph = exported.model_proto
    axes = {}  # the exporter's name of a dynamic size -> our name
    for value in graph.graph.input:
        for size, name in zip(value.type.tensor_type.shape.dim, ("batch", "samples"), strict=False):
            if size.dim_param:
                axes[size.dim_param] = name
    for value in [*graph.graph.input, *graph.graph.output]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = axes.get(size.dim_param, "")
        del value.metadata_props[:]
    del graph.graph.value_info[:]
    for part in [graph, graph.graph, *graph.graph.node, *graph.graph.initializer]:
        del part.metadata_props[:]  # source lines, with local folders, of each node
        part.doc_string = ""
    return graph


def _simplify(graph: onnx_ir.Model) -> None:
    """
    Computes constants in advance, and removes duplicates and operations without effect.

    torch's exporter offers more (`optimize=True`), which does not make a file faster: onnxruntime does the same when
    it loads one. But one of its rules compares each node with all others, which dominates the export of large models.
    """
    for _ in range(2):  # the second round uses the shapes that the first one finds
        fold_constants_ir(graph, onnx_shape_inference=True)
        RewritePass(RULES)(graph)
        passes.RemoveUnusedNodesPass()(graph)
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(graph)


def front_end_nodes(graph: onnx.ModelProto) -> list[str]:
    """Returns the names of the nodes that compute the model's inputs, if the graph has a front end."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    waiting, found = ["cqt_values", "mel_values", "input_values"], set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return sorted(found)


def _halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy with the model's large weights in half precision, each cast to float32 where it is used.

    Computing in half precision would not help: on a CPU and in browsers, every number is converted back and forth.
    """
    halved, casts = onnx.ModelProto.FromString(graph.SerializeToString()), []
    for weight in halved.graph.initializer:
        # Not vectors, such as the running statistics of a BatchNorm: they are small, and need their precision.
        is_large = len(weight.dims) > 1 and math.prod(weight.dims) >= MIN_HALVED
        is_large &= weight.data_type == onnx.TensorProto.FLOAT
        if is_large and not weight.name.startswith("front_end."):
            values = numpy_helper.to_array(weight).astype(np.float16)
            if not np.isfinite(values).all():
                raise DataError(f"{weight.name} holds weights that are too large for fp16: leave out --quantize fp16.")
            full = weight.name
            weight.CopyFrom(numpy_helper.from_array(values, f"{full}.half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [full], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved


def _description(classify: MaxMViTAudioClassificationPipeline, form: Form) -> dict[str, str]:
    """Returns the metadata of the file as texts, with JSON for structured values."""
    config, extractor = classify.model.config, classify.feature_extractor
    length = "" if form.window_s is None else str(samples_of(form.window_s, extractor.sampling_rate))
    return {
        "sampling_rate": str(extractor.sampling_rate),
        "labels": json.dumps([config.id2label[index] for index in range(config.num_labels)], ensure_ascii=False),
        "classes": str(config.num_classes),  # the first of the labels; the others are dimensions
        "samples": length if form.front_end else "",
        "min_length": str(extractor.min_length),
        "max_clip_s": str(config.max_clip_s),
        "window_s": str(config.window_s),
        "scores": APPLY.get(config.problem_type, "softmax"),
        "quantized": form.quantize or "",
        "extractor": json.dumps(extractor.to_dict(), default=str),
        "model": json.dumps(config.to_dict(), default=str),
        "licence": _licence(classify.model.name_or_path),
        "version": _version(),
    }


def _licence(checkpoint: str) -> str:
    """Returns the licence of the weights from the model card in the checkpoint's folder, or `"unknown"`."""
    card = Path(checkpoint, "README.md")
    parts = card.read_text(encoding="utf-8").split("---", 2) if card.is_file() else []
    named = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return str(named.get("license", "unknown")) if isinstance(named, dict) else "unknown"


def _version() -> str:
    """Returns the version of this project, installed or from its folder."""
    try:
        return version("maxmvit-mlp")
    except PackageNotFoundError:
        return tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]


def _clips(sampling_rate: int, form: Form) -> Iterator[np.ndarray]:
    """Yields batches of synthesised voices, `(clips, samples)`."""
    voices = [synthesize_clip(EMOTIONS[number % len(EMOTIONS)], number, 0) for number in range(10)]
    speech = soxr.resample(np.concatenate(voices), SAMPLING_RATE, sampling_rate)
    lengths = LENGTHS_S if form.window_s is None else [form.window_s] * 3
    for number, seconds in enumerate(lengths):
        samples = samples_of(seconds, sampling_rate)
        starts = np.arange(1 + number % 3) * (sampling_rate // 2)
        yield np.stack([np.resize(speech[start:], samples) for start in starts])
