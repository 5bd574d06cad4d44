"""A law: what a user runs at once in two threads gives what it gives one after the other, and
leaves nothing changed."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest

import retroact as ra

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("threads", ROOT / "bench" / "faults" / "threads.py")
assert SPEC is not None and SPEC.loader is not None
threads = importlib.util.module_from_spec(SPEC)
sys.modules["threads"] = threads
SPEC.loader.exec_module(threads)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """An audit's claimed attack takes few steps."""
    monkeypatch.setattr(ra, "audit", partial(ra.audit, claimed="PGD(steps=2)"))


def held(rounds, kinds):
    *_, found = threads.compare(rounds, kinds=kinds)
    assert not [what for what, n in found.items() if what[1] == "differ" and n]
    assert all(found[name, "same"] == rounds for name in threads.CALLS)


def test_two_calls_at_once_give_what_they_give_alone():
    held(1, threads.KINDS[:2])


def test_so_they_do_with_attention_too():
    held(1, threads.KINDS[1:])


@pytest.mark.slow
@pytest.mark.long
def test_so_they_do_many_times():
    held(3, threads.KINDS)


def test_a_difference_is_seen(monkeypatch):
    turns = iter(range(100))
    monkeypatch.setattr(threads, "CALLS", {"retrofits": lambda net, data: str(next(turns))})
    *_, found = threads.compare(2, kinds=threads.KINDS[:2])
    assert found["retrofits", "differ"] == 2 and found["nn.Module", "same"] == 2
