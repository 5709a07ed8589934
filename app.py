#!/usr/bin/env python
"""A page that shows the emotion of a recording: `python app.py [MODEL]`, then open http://localhost:7860."""

import sys

from ser.commands.app import command

if __name__ == "__main__":
    sys.exit(command())
