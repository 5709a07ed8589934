"""The commands, one module each: train, predict, evaluate, export, onnx and app."""
