"""`retroact doctor`: what is here, and a self-check that fails where something is broken."""

import json

import torch

import retroact as ra


def test_it_says_what_is_here(call):
    code, out, _ = call("doctor", "--json")
    told = json.loads(out)
    assert code == 0 and told["versions"]["retroact"] == ra.__version__
    assert told["versions"]["torch"] == torch.__version__
    assert "onnx" in told["extras"]["onnx"] and "dev" not in told["extras"]
    assert told["devices"][0]["name"] == "cpu"
    assert {row["name"]: row["from"] for row in told["data"]}["digits"].startswith("scikit-learn")
    assert len(told["checks"]) >= 6 and all(check["passed"] for check in told["checks"])
    code, out, _ = call("doctor")
    assert code == 0 and f"retroact {ra.__version__}" in out and " passed in " in out


def test_what_is_broken_is_found_and_the_rest_is_checked(call, monkeypatch):
    def flaw(*_, **__):
        raise RuntimeError("no such kernel\nfor this card")

    monkeypatch.setattr("retroact.evaluation.evaluate.evaluate", flaw)
    code, out, _ = call("doctor", "--json")
    checks = json.loads(out)["checks"]
    failed = [check for check in checks if not check["passed"]]
    assert code == 1 and [c["said"] for c in failed] == ["RuntimeError: no such kernel"]
    assert "PGD" in failed[0]["check"] and len(checks) >= 6


def test_wrong_weights_are_found(call, monkeypatch):
    monkeypatch.setattr("retroact.evaluation.accuracy.clean_accuracy_of", lambda *_: 0.5)
    code, out, _ = call("doctor")
    assert code == 1 and "FAILED: digits-cnn decides" in out and "50.00%" in out


def test_without_torch_it_says_so(call, monkeypatch):
    from retroact.cli import doctoring

    def lacking():
        """torch can be imported."""
        raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(doctoring, "check_torch", lacking)
    code, out, _ = call("doctor")
    assert code == 1 and "FAILED: torch can be imported: ImportError: libtorch.so" in out
