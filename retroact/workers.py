"""Processes that work for this one, and end when it does, however it ends.

It needs no torch: a process that has just begun watches the one that began it, by a thread that
waits at a pipe, before it imports anything heavy. Ctrl-C is heard by the parent alone, which ends
its processes at once. All that travels is pickled whole, so a process that dies takes nothing along
that another still needs.

On Linux what they import is paid for once in a program: they are forked from one process beside it
that has imported what this one had, and has run nothing and started no thread, so that a fork of it
is safe (one of this process, whose threads may hold locks, is not). They end with it. A program
that has imported all that it needs and is still one thread calls `fork_from_here`: the process
beside it is then a fork of this one, and nothing is imported twice.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any, NoReturn

if sys.platform != "win32":
    from multiprocessing import forkserver, resource_tracker

TRIES = 2
"""Processes that a task may end before it is given up."""
PATIENCE = 5.0
"""Seconds that a process is given to end by itself when its work is done."""
WATCH = 1.0  # seconds between two looks at processes whose end the system may not have told
KILLED = -9  # the exit code of a process that was killed, as by a system that lacks memory
_STARTS, _PAUSE = 5, 0.1  # tries to start a process, and seconds between them
_LINGERS = 0.1  # seconds for which the system may still count a thread that has ended
_FORKS = sys.platform == "linux"
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_PLACE: list[int] = []  # of this process, where another began it


def own_place() -> int | None:
    """The place of this process among those that work beside one another, from 0 on, which one that
    follows it takes over; None in the process that began them."""
    return _PLACE[-1] if _PLACE else None


class LostTaskError(RuntimeError):
    """Tasks that ended each process that did them; `tasks` has them. All others are done."""

    def __init__(self, tasks: Sequence[object], why: str, times: int = TRIES) -> None:
        self.tasks, self.why = tasks, why
        super().__init__(
            f"{len(tasks)} of the tasks ended {times} processes each ({why}), the first:"
            f" {str(tasks[0])[:200]}; give it more memory or a smaller chunk"
        )


class RemoteTraceback(Exception):  # noqa: N818  # a cause, which is never raised
    """Where in another process an error was raised, as text."""


@dataclass
class _Job:
    task: Any
    ended: int = 0
    """Processes that ended while they did it."""


def run_beside(
    size: int, arrive: Callable[[], object], work: Callable[[Any], Any], tasks: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
    """Yields each task with `work(task)`, done in up to `size` processes, as it is done.

    Each process calls `arrive()` first. A task whose process ends is done again by another one; if
    that ends too, LostTaskError names it once all others are done. Whatever ends this generator
    ends its processes.
    """
    crew = _Crew(size, (pack(arrive), pack(work)), tasks)
    try:
        yield from crew.run()
        crew.dismiss()
    finally:
        crew.kill()


def pack(thing: object) -> bytes:
    """What travels to another process; TypeError for what cannot."""
    try:
        return pickle.dumps(thing)
    except (TypeError, AttributeError, pickle.PicklingError) as e:
        raise TypeError(
            f"this work cannot be sent to another process ({e}); give Threads(2) or Serial()"
        ) from e


def _import_beside() -> None:
    """Names to the process that is forked what it is to import: what is imported here of ours."""
    if _FORKS:
        ours = __name__.split(".")[0]
        _CONTEXT.set_forkserver_preload([m for m in sys.modules if m.split(".")[0] == ours])


class _Crew:
    """Processes that share a list of tasks."""

    def __init__(self, size: int, first: tuple[bytes, bytes], tasks: Iterable[Any]) -> None:
        self._size, self._first = size, (pack(dict(os.environ)), *first)
        self._waiting = deque(_Job(task) for task in tasks)
        self._members: list[_Member] = []
        _import_beside()
        self._given_up: list[_Job] = []
        self._why, self._stillborn = "", 0

    def run(self) -> Iterator[tuple[Any, Any]]:
        """Yields each task with its result."""
        while self._left():
            self._engage()
            for member in self._hear():
                answer = member.answer()
                if answer is None:
                    self._bury(member)
                elif not member.ready:
                    answer.value()
                    member.ready, self._stillborn = True, 0
                else:
                    job, member.job = member.job, None
                    assert job is not None
                    yield job.task, answer.value()
        if self._given_up:
            raise LostTaskError([job.task for job in self._given_up], self._why)

    def dismiss(self) -> None:
        """Lets the processes end by themselves."""
        for member in self._members:
            member.pipe.close()
        for member in self._members:
            member.process.join(PATIENCE)

    def kill(self) -> None:
        """Ends them now."""
        for member in self._members:
            member.kill()
        for member in self._members:
            member.process.join(PATIENCE)

    def _left(self) -> int:
        return len(self._waiting) + sum(m.job is not None for m in self._members)

    def _engage(self) -> None:
        """Starts what processes are missing, and gives each that is idle a task."""
        while len(self._members) < min(self._size, self._left()):
            self._members.append(_Member(self._free_place()))
            for part in self._first:
                self._members[-1].send(part)
        for member in self._members:
            if member.ready and member.job is None and self._waiting:
                member.job = self._waiting.popleft()
                member.send(pack(member.job.task))

    def _free_place(self) -> int:
        """The first that nobody has: that of a process that has ended, if one has."""
        taken = {member.place for member in self._members}
        return next(place for place in range(len(taken) + 1) if place not in taken)

    def _hear(self) -> list[_Member]:
        """The processes that have answered or ended."""
        ready = wait([m.pipe for m in self._members], WATCH)
        return [m for m in self._members if m.pipe in ready or not m.process.is_alive()]

    def _bury(self, member: _Member) -> None:
        """Puts back what a process that has ended was doing."""
        self._members.remove(member)
        member.process.join(WATCH)
        member.kill()
        member.process.join(PATIENCE)
        code, job = member.process.exitcode, member.job
        self._why = _say(code)
        if not member.ready:
            self._stillborn += 1
            if self._stillborn >= TRIES:
                raise RuntimeError(
                    f"processes ended as they began ({self._why}); a program that starts processes"
                    ' must be a file whose own calls stand under `if __name__ == "__main__":`;'
                    " else give Threads(2) or Serial()"
                )
        if code == KILLED and self._size > 1:
            self._size -= 1  # fewer at once need less memory
        if job is None:
            return
        job.ended += 1
        (self._given_up if job.ended >= TRIES else self._waiting).append(job)
        if job.ended < TRIES:
            warnings.warn(
                f"a process ended in the middle of its work ({self._why}), which is done again;"
                f" {self._size} at once go on",
                stacklevel=1,
            )


def _say(code: int | None) -> str:
    if code == KILLED:
        return "killed, as by a system that lacks memory"
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@dataclass(frozen=True)
class _Answer:
    """What came of a task: its result, or an error and where that was raised."""

    result: Any = None
    error: BaseException | None = None
    where: str = ""

    def value(self) -> Any:
        """The result; raises the error."""
        if self.error is not None:
            raise self.error from RemoteTraceback(f"\n{self.where}")
        return self.result


class _Member:
    """A process, this end of the pipe to it, and what it is doing."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.job: _Job | None = None
        self.ready = False
        self.pipe, there = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_live, args=(there, place))
        with _deaf():
            _start(self.process)
            # before the exit of this program waits for its processes
            self._end = Finalize(self, _end, (self.process, self.pipe), exitpriority=1)
        there.close()

    def send(self, part: bytes) -> None:
        """Sends it; that nobody is there any more is noticed when no answer comes."""
        with suppress(OSError):
            self.pipe.send_bytes(part)

    def answer(self) -> _Answer | None:
        """What it has answered; None where it has ended."""
        try:
            found = pickle.loads(self.pipe.recv_bytes()) if self.pipe.poll() else None
        except (EOFError, OSError):
            return None
        assert found is None or isinstance(found, _Answer)
        return found

    def kill(self) -> None:
        """Ends it now."""
        self._end()


def _start(process: Any) -> None:
    """Starts it; again where the one that it is forked from has just ended, which is begun anew as
    soon as the system has told so."""
    for _ in range(_STARTS - 1):
        try:
            process.start()
        except (EOFError, ConnectionError):
            time.sleep(_PAUSE)
        else:
            return
    process.start()


def _end(process: Any, pipe: Connection) -> None:
    process.kill()
    pipe.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started within the block does not hear Ctrl-C, which a terminal sends to all."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # as its start would end the deafness
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------------- forked from this one


def fork_from_here() -> bool:
    """Whether this process, as it is now, became what all later ones are forked from: a copy that
    does nothing else.

    Not where it has a second thread, which may hold a lock that nobody would open in the copy, nor
    where nothing is forked: there the process beside imports for itself, as it does where this is
    not called. Files that are open here are not open there.
    """
    if sys.platform != "linux" or not _is_one_thread():
        return False
    with _deaf(), _forking():
        forkserver.ensure_running()
    return True


def _is_one_thread() -> bool:
    """To Python, and to the system, which also counts those of libraries."""
    until = time.monotonic() + _LINGERS
    while threading.active_count() == 1:
        if len(os.listdir("/proc/self/task")) == 1:
            return True
        if time.monotonic() > until:
            break
        time.sleep(_LINGERS / 100)
    return False


@contextmanager
def _forking() -> Iterator[None]:
    """What multiprocessing would start a new interpreter for, a fork of this one runs instead."""
    begin = util.spawnv_passfds
    util.spawnv_passfds = _fork
    try:
        yield
    finally:
        util.spawnv_passfds = begin


def _fork(path: object, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Gives a fork of this process the code that the arguments end with, and these open files."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the copy would say it again
    pid = os.fork()
    return pid or _run_bare(str(args[-1]), passfds)


def _run_bare(code: str, files: Sequence[int]) -> NoReturn:
    """Runs it in this fork, which keeps nothing that was open; where the first process has held a
    lock to start it, nobody has it here."""
    try:
        forkserver._forkserver._lock = threading.Lock()  # type: ignore[attr-defined]
        _close_all_but(files)
        exec(code, {})
    except SystemExit:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _close_all_but(files: Sequence[int]) -> None:
    """Closes what is open, but the standard streams; the numbers stay taken, as objects of the
    first process would close whatever came to have them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in files:
            os.dup2(nothing, int(name))


# ------------------------------------------------------------------------------ in the new process


def _live(pipe: Connection, place: int) -> None:
    """Does one task after the other, until nobody is there to ask."""
    _die_with_parent()
    _PLACE.append(place)
    works: list[Callable[[Any], Any]] = []
    with suppress(EOFError, OSError):
        _take_environment(pickle.loads(pipe.recv_bytes()))
        first, second = pipe.recv_bytes(), pipe.recv_bytes()

        def arrive() -> None:
            pickle.loads(first)()
            works.append(pickle.loads(second))

        pipe.send_bytes(_answer(arrive))
        while True:
            task = pipe.recv_bytes()
            pipe.send_bytes(_answer(lambda: works[0](pickle.loads(task))))  # noqa: B023  # now


def _die_with_parent() -> None:
    """Ends this process with the one that began it, whatever it is doing."""
    if _FORKS:  # and with the one that it is forked from, which alone can tell how it ends
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if wait([parent.sentinel], 0):
        os._exit(1)
    threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _take_environment(there: dict[str, str]) -> None:
    """That of the process that began this one, which may have changed since the first began."""
    for name in os.environ.keys() - there.keys():
        del os.environ[name]
    os.environ.update(there)


def _answer(call: Callable[[], Any]) -> bytes:
    try:
        return pack(_Answer(call()))
    except BaseException as error:
        return _pack_error(error, traceback.format_exc())


def _pack_error(error: BaseException, where: str) -> bytes:
    """The error itself if it travels, else what it says."""
    try:
        packed = pickle.dumps(_Answer(error=error, where=where))
        pickle.loads(packed)
    except Exception:
        return pickle.dumps(
            _Answer(error=RuntimeError(f"{type(error).__name__}: {error}"), where=where)
        )
    return packed
