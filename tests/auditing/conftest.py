"""What the tests of audits share: students that learn for a moment."""

import pytest


@pytest.fixture(autouse=True)
def short_lessons(monkeypatch):
    """A student learns for a tenth of its steps, which are 3 seconds of every side that has an
    alarm; what a student is worth is asked in tests/crafting/test_student.py."""
    monkeypatch.setattr("retroact.crafting.student._STEPS", 12)
