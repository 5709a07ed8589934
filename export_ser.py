#!/usr/bin/env python
"""Writes a model as one ONNX file, from waveform to emotion, that needs neither PyTorch nor this project."""

import sys

from ser.commands.export import command

if __name__ == "__main__":
    sys.exit(command())
