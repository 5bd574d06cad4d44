"""Evidence: what an audit says is judged again from its images, and nothing that was changed
passes."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import retroact as ra
from retroact.auditing.evidence import ABOUT, NUMBERS, Evidence, EvidenceError, Origin
from retroact.auditing.numbers import Pair

EPS = ra.Linf(0.1)


@pytest.fixture(scope="module")
def made():
    return ra.audit("digits-cnn", "JumpReLU(1.0)", "digits[:30]", EPS, battery="quick")


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    return ra.write_evidence(made, tmp_path_factory.mktemp("audit") / "evidence")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "evidence")


def change(path, edit):
    """Writes a file of images anew, with what `edit` makes of its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata)


def tell(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_the_images_of_an_audit_show_what_it_says(made, written):
    found, counts = ra.verify(written), made.verdict.counts
    assert found.holds and str(found).startswith("HOLDS") and found.counts == counts
    assert found.table()[2] == (
        "before",
        "verified",
        int(made.before.verified.sum()),
        int(made.before.verified.sum()),
    )
    assert {p.name for p in written.iterdir()} == {
        *("before.safetensors", "before.pt", "after.safetensors", "after.pt"),
        *("audit.html", NUMBERS, ABOUT),
    }
    about = json.loads((written / ABOUT).read_text())
    assert about["networks"]["after"]["change"] == "JumpReLU(kappa=1.0)"
    said = json.loads((written / NUMBERS).read_text())
    assert said["verified"] == counts.verified[1] and "torch" in said["pedigree"]["versions"]
    assert said["fingerprints"] == made.fingerprints.to_json()


def test_every_image_that_fell_is_there_with_the_attack_that_felled_it(made, written):
    net, images = ra.load("digits-cnn"), ra.data("digits[:30]")
    for who, side in zip(("before", "after"), made.sides, strict=True):
        tensors = load_file(written / f"{who}.safetensors")
        fell = np.flatnonzero(side.broken_by >= 0)
        assert tensors["row"].tolist() == fell.tolist() and len(fell) > 10
        assert tensors["turn"].tolist() == side.broken_by[fell].tolist()
        assert torch.equal(tensors["label"], images.labels[fell])
        net = net if who == "before" else ra.retrofit(net, ra.JumpReLU(1.0))
        assert torch.equal(net(tensors["x_adv"]).argmax(1), tensors["decided"])


def test_the_tensor_that_robustbench_takes_is_the_slice_as_attacked(made, written):
    net, images = ra.load("digits-cnn"), ra.data("digits[:30]")
    whole = torch.load(written / "before.pt", weights_only=True)
    assert type(whole) is torch.Tensor and whole.shape == images.images.shape
    right = (net(whole).argmax(1) == images.labels).numpy()
    assert np.array_equal(right, made.before.verified)
    moved = (whole != images.images).flatten(1).any(1).numpy()
    assert np.array_equal(moved, made.before.broken_by >= 0)
    assert float((whole - images.images).abs().max()) <= EPS.eps + 1e-6


def test_an_image_outside_ball_or_box_is_found(folder):
    def leave(tensors):
        tensors["x_adv"][0] = (tensors["x_adv"][0] + 0.5).clamp(0, 1)
        tensors["x_adv"][1, 0, 0, 0] = -0.05

    change(folder / "after.safetensors", leave)
    found = ra.verify(folder)
    assert not found.holds and any("outside the ball" in text for text in found.findings)
    assert any("outside the box" in text or "outside the ball" in text for text in found.findings)
    verified = json.loads((folder / NUMBERS).read_text())["verified"]
    assert found.counts.verified[1] > verified  # such images count for nothing
    assert any("hold" in text and "after.pt" in text for text in found.findings)


def test_an_image_that_is_no_success_is_found(folder):
    clean = ra.data("digits[:30]").images

    def give_back(tensors):
        tensors["x_adv"][3] = clean[tensors["row"][3]]

    change(folder / "before.safetensors", give_back)
    row = int(load_file(folder / "before.safetensors")["row"][3])
    found = ra.verify(folder)
    assert f"before: image {row} is decided rightly" in found.findings
    assert any(text.startswith("before: verified") for text in found.findings)


def test_an_image_that_is_left_out_is_missed(folder):
    def leave_out(tensors):
        for name in tensors:
            tensors[name] = tensors[name][1:].contiguous()

    change(folder / "after.safetensors", leave_out)
    assert any("after: verified" in text for text in ra.verify(folder).findings)


@pytest.mark.parametrize("what", ["clean", "claimed", "verified", "clean_twin", "verified_twin"])
def test_a_number_that_was_changed_is_found(folder, what):
    said = json.loads((folder / NUMBERS).read_text())[what]
    tell(folder / NUMBERS, **{what: said - 2 / 30})
    found = ra.verify(folder)
    who = "before" if what.endswith("_twin") else "after"
    assert [t for t in found.findings if t.startswith(f"{who}: {what.removesuffix('_twin')}")]


def test_the_threat_is_the_one_that_the_numbers_are_about(folder):
    tell(folder / NUMBERS, threat="Linf(eps=0.05)")
    assert any("outside the ball" in text for text in ra.verify(folder).findings)


def test_counts_of_pairs_are_compared_too(folder):
    tell(folder / NUMBERS, lost=json.loads((folder / NUMBERS).read_text())["lost"] + 1)
    assert any(text.startswith("lost ") for text in ra.verify(folder).findings)


def test_rows_that_are_said_twice_or_do_not_exist_are_no_evidence(folder):
    for rows in (lambda r: r.fill_(3), lambda r: r.add_(1000), lambda r: r.neg_()):
        copy = shutil.copytree(folder, folder.with_name("copy"), dirs_exist_ok=True)
        change(copy / "after.safetensors", lambda tensors, rows=rows: rows(tensors["row"]))
        with pytest.raises(EvidenceError, match="rows"):
            ra.verify(copy)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file ran code",))


def test_nothing_is_unpickled(folder):
    (folder / "before.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(EvidenceError, match=r"before\.pt is no tensor"):
        ra.verify(folder)
    torch.save(Bomb(), folder / "before.pt")
    with pytest.raises(EvidenceError, match=r"before\.pt is no tensor"):
        ra.verify(folder)


def test_other_weights_are_found_and_noted_where_the_network_was_given(folder):
    net = ra.load("digits-cnn")
    other = ra.load("digits-cnn")
    with torch.no_grad():
        next(other.parameters()).mul_(1.0001)
    hard = ra.retrofit(net, ra.JumpReLU(1.0))
    assert ra.verify(folder, before=net, after=hard).holds
    found = ra.verify(folder, before=other, after=hard)
    assert found.notes and "the weights are" in found.notes[0]
    prints = json.loads((folder / NUMBERS).read_text())["fingerprints"]
    tell(folder / NUMBERS, fingerprints=prints | {"twin": "0" * 16})
    assert any("those of the audit 0000" in text for text in ra.verify(folder).findings)


def test_images_of_ones_own_are_given_again_and_must_be_the_same(tmp_path):
    net, images = ra.load("digits-cnn"), ra.data("digits[:20]")
    mine = (images.images.numpy(), images.labels.numpy())
    audit = ra.audit(net, net, mine, EPS, battery="quick")
    folder = ra.write_evidence(audit, tmp_path / "mine")
    with pytest.raises(EvidenceError, match="give them with data="):
        ra.verify(folder)
    assert ra.verify(folder, data=mine).holds
    with pytest.raises(EvidenceError, match="other images or labels"):
        ra.verify(folder, data=(mine[0][::-1].copy(), mine[1][::-1].copy()))


def test_a_file_runs_no_code(folder):
    said = json.loads((folder / ABOUT).read_text())
    said["networks"]["after"] |= {"net": "os:getcwd", "change": ""}
    (folder / ABOUT).write_text(json.dumps(said))
    with pytest.raises(EvidenceError, match=r"runs only where you name it; .*--against"):
        ra.verify(folder)


def test_what_is_no_evidence_says_so(folder, tmp_path):
    with pytest.raises(EvidenceError, match="no evidence of an audit"):
        ra.verify(tmp_path / "nowhere")
    for name, text in ((NUMBERS, "{}"), (ABOUT, "[]"), (ABOUT, "no JSON")):
        copy = shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        (copy / name).write_text(text)
        with pytest.raises(EvidenceError, match="no evidence of an audit"):
            ra.verify(copy)
    copy = shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
    (copy / "after.safetensors").write_bytes(b"nothing")
    with pytest.raises(EvidenceError, match="holds no images"):
        ra.verify(copy)


def test_names_say_how_a_network_is_made_again():
    assert Origin.of("lenet-mnist") == Origin("lenet-mnist")
    assert Origin.of("a + JumpReLU(kappa=1.0)") == Origin("a", change="JumpReLU(kappa=1.0)")
    hard = ra.retrofit(ra.load("digits-cnn"), ra.JumpReLU(0.5), sites="conv1*")
    named = f"digits-cnn + {hard.retrofit}"
    again = Origin.of(named).load(lambda origin: ra.load(origin.net))
    assert again.retrofit == hard.retrofit
    averaged = Origin("digits-cnn", draws=3).load(lambda origin: ra.load(origin.net))
    assert isinstance(averaged, ra.Expectation) and averaged.draws == 3


def test_another_name_serves_the_change_too(folder):
    evidence = Evidence.read(folder)
    renamed = evidence.renamed(Pair("mine:build", None), Pair("w.pth", "")).networks
    assert renamed.before == Origin("mine:build", "w.pth")
    assert renamed.after == Origin("mine:build", "w.pth", "JumpReLU(kappa=1.0)")
    renamed = evidence.renamed(Pair(None, "other"), Pair("", "v.pth")).networks
    assert renamed == (evidence.networks.before, Origin("other", "v.pth"))
