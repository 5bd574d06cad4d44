"""The exit codes of the command line: 0 is said of nothing that was not seen to be fine."""

from __future__ import annotations

from collections.abc import Iterable

FOUND = 1
WRONG_CALL = 2
COULD_NOT_RUN = 3
NOT_SETTLED = 4
STOPPED = 130  # what a shell expects of a program that Ctrl-C ended


def worst(codes: Iterable[int]) -> int:
    """The answer to several questions: what was found comes before what is not settled."""
    asked = set(codes)
    return FOUND if FOUND in asked else max(asked)


CODES = """\b
Exit codes:
    0  fine
    1  found: a verdict that --fail-on names, a change that --require finds
       weaker, a finding of selftest, doctor, verify, store check or store
       merge
    2  a wrong call: the words are wrong, whatever the network and the data
    3  could not run: a refusal, a missing file, a store in use, a network
       that fails
    4  not settled, under --fail-on or --require: INCONCLUSIVE, ABSTAINED;
       under --require also TOO STRONG A THREAT
  130  stopped by Ctrl-C
"""
"""What the exit codes of all commands say."""

EPILOG = f"""\b
With every command:
  --import MODULE  a module of your own, whose specs are then known

{CODES}"""
"""What ends the help of a command."""
