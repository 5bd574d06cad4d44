"""Processes that end with the one that began them, and tasks that survive their process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retroact.workers import LostTaskError, own_place, run_beside

HERE = Path(__file__).parent


def nothing():
    pass


def twice(task):
    return 2 * task


def end_once(task):
    """Ends its process, but only the first that does it."""
    mark, n = task
    if n == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def end_all_once(task):
    """Ends the process that all are forked from, and so all, but only the first that does it."""
    mark, n = task
    if n == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(5)
    return n


def end_always(n):
    if n == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return n


def wait_then_end(task):
    """Says its place, once another process is there; the first in the second place ends."""
    folder, _ = task
    (folder / f"{own_place()} {os.getpid()}").touch()
    until = time.monotonic() + 60
    while len(list(folder.glob("? *"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    if own_place() == 1 and not (folder / "ended").exists():
        (folder / "ended").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    while len(list(folder.glob("1 *"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)  # until somebody follows the one that ended
    return own_place()


def end_at_once():
    os._exit(7)


class OddError(Exception):
    """An error that does not travel: it wants two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_odd(task):
    raise OddError(1, task)


def test_every_task_is_done_once():
    assert sorted(run_beside(2, nothing, twice, range(5))) == [(n, 2 * n) for n in range(5)]


def test_a_process_takes_over_the_place_of_one_that_ended(tmp_path):
    tasks = [(tmp_path, n) for n in range(4)]
    with pytest.warns(UserWarning, match="signal 11"):
        places = [result for _, result in run_beside(2, nothing, wait_then_end, tasks)]
    assert set(places) == {0, 1} and own_place() is None
    processes = sorted(path.name.split()[0] for path in tmp_path.glob("? *"))
    assert processes == ["0", "1", "1"]


def test_the_task_of_a_killed_process_is_done_by_another(tmp_path):
    tasks = [(tmp_path / "mark", n) for n in range(6)]
    with pytest.warns(UserWarning, match=r"killed, as by .* memory\), .* 1 at once go on"):
        found = [result for _, result in run_beside(2, nothing, end_once, tasks)]
    assert sorted(found) == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_the_end_of_what_they_are_forked_from_ends_no_work(tmp_path):
    tasks = [(tmp_path / "mark", n) for n in range(6)]
    with pytest.warns(UserWarning, match="a process ended in the middle of its work"):
        found = [result for _, result in run_beside(2, nothing, end_all_once, tasks)]
    assert sorted(found) == [0, 1, 2, 3, 4, 5]


def test_a_task_that_ends_two_processes_is_named_once_all_others_are_done():
    found = []
    with (
        pytest.warns(UserWarning, match=r"signal 11\), which is done again; 2 at once"),
        pytest.raises(LostTaskError, match=r"1 of the tasks ended 2 .*signal 11.* first: 1;") as e,
    ):
        found.extend(n for n, _ in run_beside(2, nothing, end_always, range(4)))
    assert sorted(found) == [0, 2, 3] and e.value.tasks == [1]


def test_processes_that_cannot_begin_are_said():
    with pytest.raises(RuntimeError, match=r"ended as they began \(exit code 7\)"):
        list(run_beside(2, end_at_once, twice, range(4)))


def say_where(task):
    """Who began this process, what it had imported before its first task, and a variable."""
    return os.getppid(), "torch" in sys.modules, os.environ.get("RETROACT_TESTED")


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_what_is_imported_is_paid_for_once_and_the_environment_is_that_of_now(monkeypatch):
    import torch  # noqa: F401  # as our own modules do, which are imported beside

    import retroact.executors  # noqa: F401

    found = []
    for now in ("one", "two", None):
        if now is None:
            monkeypatch.delenv("RETROACT_TESTED")
        else:
            monkeypatch.setenv("RETROACT_TESTED", now)
        found += [(now, *said) for _, said in run_beside(2, nothing, say_where, range(2))]
    parents = {parent for _, parent, *_ in found}
    assert len(parents) == 1 and os.getpid() not in parents
    assert all(said == now for now, *_, said in found)


def hears(task):
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(sys.platform == "win32", reason="no masks of signals")
def test_processes_do_not_hear_what_a_terminal_sends_to_all():
    assert [heard for _, heard in run_beside(2, nothing, hears, range(2))] == [False, False]
    assert hears(None)


FORKED = f"""
import json, os, sys, threading
sys.path.insert(0, {str(HERE)!r})
from test_workers import nothing, say_origin
from retroact.workers import fork_from_here, run_beside
if __name__ == "__main__":
    sys.modules["mark"], kept = sys, open(__file__)
    if "thread" in sys.argv:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    forked = fork_from_here()
    found = [said for _, said in run_beside(2, nothing, say_origin, range(4))]
    print(json.dumps([forked, os.getpid(), found]))
"""


def say_origin(task):
    """Of what this process is a fork, whether that had a mark, and which files are open here."""
    files = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    opened = [os.readlink(file) for file in files if os.path.exists(file)]
    return os.getppid(), "mark" in sys.modules, opened, hears(task)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_program_of_one_thread_is_forked_as_it_is_and_another_is_not(threads, tmp_path):
    program = tmp_path / "forked.py"
    program.write_text(FORKED)
    words = [sys.executable, program, *["thread"][: threads - 1]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    forked, pid, found = json.loads(done.stdout)
    assert forked == (threads == 1) and len(found) == 4
    assert len({parent for parent, *_ in found}) == 1 and found[0][0] != pid
    for _, marked, opened, heard in found:
        assert marked == forked and str(program) not in opened and not heard


def test_an_error_that_does_not_travel_is_told():
    with pytest.raises(RuntimeError, match="OddError: 1 and 5") as e:
        list(run_beside(1, nothing, raise_odd, [5]))
    assert "in raise_odd" in str(e.value.__cause__)


BUSY = f"""
import os, sys, time
sys.path.insert(0, {str(HERE)!r})
from test_workers import busy
from retroact.workers import fork_from_here, run_beside
if __name__ == "__main__":
    assert "fork" not in sys.argv or fork_from_here()
    list(run_beside(2, busy, busy, range(4)))
"""


def busy(*task):
    """Says who works, then works on and on."""
    os.write(1, f"{os.getpid()}\n".encode())  # whole lines, from two at once
    until = time.monotonic() + (60 if task else 0)
    while time.monotonic() < until:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("words", [[], ["fork"]], ids=["new", "forked"])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_processes_end_with_their_parent(how, words, tmp_path):
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    parent = subprocess.Popen(
        [sys.executable, program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # a shell starts its background jobs, and all they start, deaf to Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    workers = {int(parent.stdout.readline()) for _ in range(4)}
    assert len(workers) == 2 and all(map(_lives, workers))
    os.kill(parent.pid, getattr(signal, how))
    until = time.monotonic() + 2
    while any(map(_lives, workers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(_lives, workers))
    assert parent.wait(2) == -getattr(signal, how)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
