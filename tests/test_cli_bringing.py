"""Plain modules of one's own on the command line: how their pixels are normalised, and a note where
nothing says it."""

import json

import pytest
import torch

import retroact as ra

CODE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), *layers)

def ready():
    import retroact as ra
    return ra.Classifier(build(), 0.3, 0.4, shape=(1, 8, 8))
"""
WORDS = ("FGSM", "--threat", "Linf(0.1)", "--data", "digits[:40]", "--json")
PIXELS = ("--mean", "0.3", "--std", "0.4")
NOTE = "brought_here:build gives a plain module, and nothing says how its pixels are normalised"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "brought_here.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "brought_here", raising=False)


def test_pixels_are_normalised_as_is_said_and_a_note_says_where_nothing_is(call):
    _, out, err = call("attack", "brought_here:build", *WORDS)
    assert err.count(NOTE) == 1
    _, said, quiet = call("attack", "brought_here:build", *WORDS, *PIXELS)
    _, own, silent = call("attack", "brought_here:ready", *WORDS)
    assert NOTE not in quiet + silent
    bare, given, ready = (json.loads(text)[0] for text in (out, said, own))
    assert given["rho_l2"] == ready["rho_l2"] != bare["rho_l2"]
    assert len({row["key"] for row in (bare, given, ready)}) == 3
    assert given["net"] == "brought_here:build mean (0.3,) std (0.4,)"


def test_a_store_knows_a_network_by_how_it_is_normalised(call):
    for more in ((), PIXELS, PIXELS):
        assert call("attack", "brought_here:build", *WORDS, *more)[0] == 0
    assert len(json.loads(call("list", "store", "--json")[1])) == 2


def test_the_same_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    said = ra.load("brought_here:build", mean=0.3, std=[0.4])
    ready, bare = ra.load("brought_here:ready"), ra.load("brought_here:build")
    assert torch.equal(said(x), ready(x)) and not torch.equal(said(x), bare(x))
    assert not said.notes and not ready.notes and NOTE in bare.notes[0]
    with pytest.raises(ValueError, match="gives a Classifier, which has its own mean and std"):
        ra.load("brought_here:ready", mean=0.5)
    with pytest.raises(ValueError, match="digits-cnn says how its pixels are normalised"):
        ra.load("digits-cnn", std=0.5)
    ra.save(ready, "r.safetensors")
    with pytest.raises(ValueError, match="r.safetensors says how its pixels are normalised"):
        ra.load("brought_here:build", weights="r.safetensors", mean=0.5)


def test_an_audit_says_it_once_and_its_evidence_knows_how_pixels_are_normalised(call, brief):
    words = ("audit", "brought_here:build", "JumpReLU(0.2)", "--threat", "Linf(0.1)")
    words = (*words, "--data", "npz:d.npz", "--quick", "--evidence", "made")
    _write_learnable("d.npz")
    code, out, err = call(*words)
    assert code == 0 and err.count(NOTE) == 1
    code, out, err = call(*words, *PIXELS)
    assert code == 0 and NOTE not in err
    code, out, err = call("verify", "made", "--net", "brought_here:build")
    assert code == 0 and "HOLDS" in out and NOTE not in err


def _write_learnable(path):
    """Images that the untrained network decides as it does: it is right on all of them."""
    import numpy as np

    x = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)
    labels = ra.load("brought_here:build")(torch.from_numpy(x)).argmax(1).numpy()
    normed = ra.load("brought_here:build", mean=0.3, std=0.4)(torch.from_numpy(x)).argmax(1)
    both = labels == normed.numpy()
    np.savez(path, images=x[both], labels=labels[both])


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--mean", "0.3,0.4"), 3, "mean has 2 numbers for 1 channel"),
        (("--mean", "127"), 3, "divide mean and std by 255"),
        (("--shape", "3,8,8"), 3, "--shape says (3, 8, 8), and the examples are of (1, 8, 8)"),
        (("--shape", "1,8,8"), 0, ""),
    ],
)
def test_what_does_not_fit_is_said(call, more, code, says):
    found, _, err = call("attack", "brought_here:build", *WORDS, *more)
    assert found == code and says in err


def test_a_shape_is_said_where_no_data_are_read(call):
    words = ("retrofit", "brought_here:build", "JumpReLU(0.2)", "--out", "h.safetensors")
    assert call(*words)[0] == 3
    code, out, _ = call(*words, "--shape", "1,8,8", *PIXELS)
    assert code == 0 and "replaced: 1" in out
    saved = ra.load("h.safetensors", into=ra.load("brought_here:build"))
    assert saved.mean.item() == pytest.approx(0.3) and saved.shape == (1, 8, 8)


def test_what_is_lacking_is_named_as_the_command_line_has_it(call):
    code, _, err = call("retrofit", "brought_here:build", "JumpReLU(0.2)")
    assert code == 3 and "(--shape C,H,W)" in err
    code, _, err = call("playground", "brought_here:build", "--out", "p.html", "--shape", "1,8,8")
    assert code == 3 and "(--data)" in err


def test_a_shape_that_is_not_that_of_the_data_is_refused_before_they_are_read(call, monkeypatch):
    from retroact.nets import data

    read, taken = data.sources.decoded, []

    def watch(name, split, rows):
        taken.append(len(rows))
        return read(name, split, rows)

    monkeypatch.setattr(data.sources, "decoded", watch)
    words = ("--threat", "Linf(0.1)", "--data", "digits", "--shape", "3,8,8")
    for command in (("audit", "brought_here:build", "SReLU(9)"), ("check", "brought_here:build")):
        code, _, err = call(*command, *words)
        assert code == 3 and "--shape says (3, 8, 8), and the examples are of (1, 8, 8)" in err
    assert taken == [1, 1]
