"""`audit --evidence` and `verify`, as a person runs them."""

import json
import sys

from safetensors import safe_open
from safetensors.torch import load_file, save_file

QUESTION = ("--threat", "Linf(0.1)", "--data", "digits[:20]", "--quick")
QUESTION = (*QUESTION, "--claimed", "PGD(steps=2)")  # nothing here hangs on what it finds

OURS = """
import retroact as ra

def build():
    zoo = ra.load("digits-cnn")
    mean, std = zoo.mean.flatten().tolist(), zoo.std.flatten().tolist()
    return ra.Classifier(zoo.module, mean, std, shape=(1, 8, 8))
"""


def test_evidence_is_written_and_judged_again(call, tmp_path, brief):
    words = ("audit", "digits-cnn", "JumpReLU(0.8)", *QUESTION, "--evidence", "made")
    code, _, err = call(*words, "--json-out", "a.json")
    assert code == 0 and "wrote made" in err
    about = json.loads((tmp_path / "made" / "evidence.json").read_text())
    assert about["commands"][0].startswith("retroact audit digits-cnn 'JumpReLU(0.8)' --threat")
    assert about["commands"][1] == "retroact verify made"
    numbers = (tmp_path / "made" / "audit.json").read_text()
    assert json.loads(numbers) == json.loads((tmp_path / "a.json").read_text())
    assert "<svg" in (tmp_path / "made" / "audit.html").read_text()
    code, out, _ = call("verify", "made")
    assert code == 0 and out.rstrip().endswith("HOLDS") and "the audit says" in out
    code, out, _ = call("verify", "made", "--json")
    told = json.loads(out)
    assert told["holds"] and told["n"] == 20 and len(told["counts"]) == 6
    assert all(row["the audit says"] == row["found"] for row in told["counts"])

    path = tmp_path / "made" / "after.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: value[:-1].contiguous() for name, value in load_file(path).items()}
    save_file(tensors, path, metadata)
    code, out, _ = call("verify", "made")
    assert code == 1 and "! after: verified" in out and out.rstrip().endswith("DIFFERS")
    code, _, err = call("verify", "nowhere")
    assert code == 3 and "is no evidence of an audit" in err


def test_evidence_of_a_network_of_ones_own_runs_what_the_command_names(
    call, tmp_path, monkeypatch, brief
):
    monkeypatch.delitem(sys.modules, "ours_there", raising=False)
    (tmp_path / "ours_there.py").write_text(OURS)
    words = ("audit", "ours_there:build", "JumpReLU(0.8)", *QUESTION, "--evidence", "made")
    assert call(*words)[0] == 0
    code, _, err = call("verify", "made")
    assert code == 3 and "runs only where you name it" in err and "--net" in err
    code, out, _ = call("verify", "made", "--net", "ours_there:build")
    assert code == 0 and "HOLDS" in out
    code, out, _ = call("verify", "made", "--net", "digits-cnn", "--data", "digits[:20]")
    assert code == 0 and "HOLDS" in out  # the same weights by another name
    code, _, err = call("verify", "made", "--net", "ours_there:build", "--data", "digits[:19]")
    assert code == 3 and "other images or labels" in err


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(call, tmp_path):
    (tmp_path / "made").write_text("a file")
    words = ("audit", "digits-cnn", "JumpReLU(0.8)", *QUESTION, "--evidence")
    code, _, err = call(*words, "made")
    assert code == 3 and "made is a file" in err
    assert call(*words, "no/where")[0] == 3


def test_the_network_before_is_kept_and_read(call, tmp_path, brief):
    words = ("audit", "digits-cnn", *QUESTION, "--baseline", "before.json")
    code, first, err = call(*words, "JumpReLU(0.8)")
    assert code == 0 and "the network before: kept in before.json" in err
    code, again, err = call(*words, "JumpReLU(0.8)", "--seed", "7")
    assert code == 0 and "the network before: read from before.json" in err
    (row,) = (line for line in first.splitlines() if line.startswith("digits-cnn  "))
    assert row in again.splitlines()
    (tmp_path / "before.json").write_text("no JSON")
    code, _, err = call(*words, "JumpReLU(0.8)")
    assert code == 3 and "holds no baselines" in err
