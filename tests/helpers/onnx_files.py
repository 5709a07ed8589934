"""Sessions and operators of exported ONNX files."""

import onnx
import onnxruntime

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


def operators(path) -> set[str]:
    graph = onnx.load(path)
    assert {entry.domain for entry in graph.opset_import} == {""}
    return {node.op_type for node in graph.graph.node}
