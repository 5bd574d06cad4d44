"""The command line: words to calls, nothing else. torch is imported only by the commands that need
it.

The notation is that of the code: `retroact attack lenet-mnist "PGD(steps=40)" --threat
"Linf(0.3)"`. Results go to stdout, everything else (progress, notes, errors) to stderr.
"""

from retroact.cli.app import app, main

__all__ = ["app", "main"]
