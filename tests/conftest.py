"""The command line in this process, for every test that calls it."""

import signal
import sys

import pytest

from retroact import cli
from retroact.cli import console

# a shell that starts the tests behind & makes them deaf, and so does nohup; programs that they
# start would be, too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in a folder of its own; returns (exit code, stdout,
    stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("retroact.cli.stopping.leave", lambda: sys.exit(130))  # but the tests stay

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retroact", *words])
        monkeypatch.setattr(console, "out", console.Console(width=200))
        monkeypatch.setattr(console, "err", console.Console(stderr=True, width=200))
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return called


@pytest.fixture
def brief(monkeypatch):
    """`--quick` takes its every step at next to no cost: for what does not hang on how many
    fall."""
    from retroact.auditing import battery

    spent = {
        "steps": 4,
        "targets": 2,
        "targeted_steps": 4,
        "finish": 4,
        "alarmed_finish": 4,
        "sample": 8,
        "points": 20,
    }
    little = battery.Battery(**spent, trial_steps=0, queries=0, anew=1)
    monkeypatch.setitem(battery._NAMED, "quick", little)
    monkeypatch.setattr(battery.Battery, "queries", 20)  # of the controls of what looks genuine
