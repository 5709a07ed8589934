#!/usr/bin/env python
"""Scores a checkpoint on any table of clips, and writes the same report as training."""

import sys

from ser.commands.evaluate import command

if __name__ == "__main__":
    sys.exit(command())
