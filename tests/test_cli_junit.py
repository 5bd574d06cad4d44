"""The JUnit file of audit and check: it says what the exit code says, from its first moment."""

from xml.etree import ElementTree as Tree

import pytest

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.cli import audits
from retroact.reports.junit import Case, junit

WORDS = ("audit", "digits-cnn", "JumpReLU(1.0)", "--threat", "Linf(0.1)", "--data", "digits[:60]")
ASKED = ("--junit", "a.xml", "--require", "not-weaker")


def case_in(path):
    suite = Tree.parse(path).getroot().find("testsuite")
    (case,) = suite.findall("testcase")
    return suite, case, [child.tag for child in case]


def test_cases_are_counted_and_odd_characters_are_no_fault():
    cases = [
        Case("a <b> & c", "passed", "fine", 1.5, {"n": "60"}),
        Case("b", "failure", "bad\x00 news"),
        Case("c", "error", "gone"),
    ]
    suite = Tree.fromstring(junit(cases, "retroact.audit").encode()).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    first, second, third = suite
    assert first.get("name") == "a <b> & c" and first.find("failure") is None
    assert first.find("properties/property").attrib == {"name": "n", "value": "60"}
    assert second.find("failure").get("message") == "bad� news"
    assert third.find("error").text == "gone" and suite.get("time") == "1.500"


@pytest.fixture(scope="module")
def made():
    little = Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20)
    return ra.audit("digits-cnn", "JumpReLU(1.0)", "digits[:60]", "Linf(0.1)", battery=little)


def test_what_is_required_and_not_shown_is_a_failure(call, monkeypatch, tmp_path, made):
    monkeypatch.setattr(audits, "run_audit", lambda *_, **__: made)
    code, _, err = call(*WORDS, *ASKED)
    suite, case, children = case_in(tmp_path / "a.xml")
    assert code in (1, 4) and "wrote a.xml" in err and suite.get("failures") == "1"
    assert children == ["properties", "failure"] and str(made) in case.find("failure").text
    said = {p.get("name"): p.get("value") for p in case.find("properties")}
    assert said["n"] == "60" and said["data"] == made.fingerprints.data and said["seed"] == "0"
    code, *_ = call(*WORDS, "--junit", "b.xml", "--require", "not-weaker", "--margin", "0.9")
    children = case_in(tmp_path / "b.xml")[2]
    assert (code == 0) is ("failure" not in children)
    assert (code == 0) is (made.verdict.compare(0.9) == "NOT WEAKER")


def test_what_did_not_come_to_an_end_is_an_error(call, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("nothing comes of it")

    monkeypatch.setattr(audits, "run_audit", fail)
    (tmp_path / "a.xml").write_text("<testsuites/>")  # of yesterday, when all was fine
    assert call(*WORDS, *ASKED)[0] == 3
    assert case_in(tmp_path / "a.xml")[2] == ["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*WORDS, "--junit", "a.xml"), "say what must, with --require or --fail-on"),
        ((*WORDS, "--budget", "soon"), "expected a budget such as 90s"),
        (
            (*("check", "digits-cnn"), *WORDS[3:], "--reported", "50", "--junit", "a.xml"),
            "--require-stands",
        ),
    ],
)
def test_a_file_that_would_say_nothing_is_refused(call, tmp_path, words, says):
    code, _, err = call(*words)
    assert code == 2 and says in err and not (tmp_path / "a.xml").exists()
