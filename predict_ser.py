#!/usr/bin/env python
"""Names the emotion in files, folders and lists of recordings."""

import sys

from ser.commands.predict import command

if __name__ == "__main__":
    sys.exit(command())
