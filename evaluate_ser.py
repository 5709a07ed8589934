#!/usr/bin/env python
"""Scores a checkpoint on any table of clips, with the report that training writes."""

import sys

from ser.commands.evaluate import command

if __name__ == "__main__":
    sys.exit(command())
