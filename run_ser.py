#!/usr/bin/env python
"""Trains and tests MaxMViT-MLP on a corpus of emotional speech."""

import sys

from ser.commands.train import command

if __name__ == "__main__":
    sys.exit(command())
