"""Sessions, operators and parts of exported ONNX files."""

from pathlib import Path

import onnx
import onnx.utils
import onnxruntime
from onnx.numpy_helper import to_array

# The operators that a file may contain: the WASM backend of onnxruntime-web and the CPU provider have all of them.
PLAIN = {
    "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvInteger", "Div", "DynamicQuantizeLinear", "Einsum", "Equal", "Erf", "Expand",
    "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Greater",
    "GreaterOrEqual", "Identity", "InstanceNormalization", "IsNaN", "LayerNormalization", "Less", "Log", "MatMul",
    "MatMulInteger", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "Not", "Pad", "Pow", "Range", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Shape", "Sigmoid",
    "Sign", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze",
    "Where",
}  # fmt: skip


def session_of(path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def split(path: Path, images: list[str]) -> tuple[Path, Path]:
    """Splits a file with a front end into two beside it: from the waveform to the images, and from these to the
    probabilities."""
    front_end, model = path.with_suffix(".front_end.onnx"), path.with_suffix(".model.onnx")
    onnx.utils.extract_model(path, front_end, ["waveform"], images)
    onnx.utils.extract_model(path, model, images, ["probabilities"])
    return front_end, model


def contents(path: Path) -> tuple[set[bytes], dict[str, tuple]]:
    """Returns the nodes and the weights of a file, to compare it with another."""
    graph = onnx.load(path).graph
    weights = {each.name: (each.data_type, *each.dims, to_array(each).tobytes()) for each in graph.initializer}
    return {node.SerializeToString() for node in graph.node}, weights


def operators(path) -> set[str]:
    graph = onnx.load(path)
    assert {entry.domain for entry in graph.opset_import} == {""}
    return {node.op_type for node in graph.graph.node}
