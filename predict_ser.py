#!/usr/bin/env python
"""Classifies the emotion of recordings in files, folders and lists."""

import sys

from ser.commands.predict import command

if __name__ == "__main__":
    sys.exit(command())
