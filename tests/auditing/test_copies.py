"""An audit makes the lean and folded forms of each network once, whatever it attacks."""

import pytest
import torch
from torch import nn

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.auditing.subjects import prepare
from retroact.evaluation.proof import prove
from retroact.retrofitting import folding, lean, surgery
from retroact.retrofitting.installed import installed
from retroact.retrofitting.lean import folds_of, same_layers
from retroact.retrofitting.surgery import refit, refit_sharing

LITTLE = Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20)
MIXED = ra.PerSite((ra.SReLU(2.0), ra.JumpReLU(0.5), ra.SReLU(1.0)))


def normed() -> nn.Module:
    """The digits network with a batch norm after every convolution."""
    net = ra.load("digits-cnn")
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            net.set_submodule(path, nn.Sequential(module, nn.BatchNorm2d(module.out_channels)))
    return net.eval()


@pytest.fixture
def tracings(monkeypatch):
    """Counts the networks that are traced."""
    counted = []
    for room in (folding, lean, surgery):
        trace = room.trace
        monkeypatch.setattr(room, "trace", lambda net, t=trace: counted.append(net) or t(net))
    return counted


@pytest.mark.parametrize("change", [ra.JumpReLU(0.5), ra.SReLU(10.0), MIXED], ids=str)
def test_an_audit_traces_at_most_four_times(change, tracings) -> None:
    how = {"battery": LITTLE, "claimed": "PGD(steps=2)"}
    ra.audit(normed(), change, ra.data("digits/validation[:20]"), "Linf(0.1)", **how)
    assert 2 <= len(tracings) <= 4


@pytest.mark.parametrize("change", [ra.JumpReLU(0.5), MIXED], ids=str)
def test_a_retrofit_and_its_fold_have_the_folds_of_the_net(change) -> None:
    net, x = normed(), torch.rand(2, 1, 8, 8)
    hard = ra.retrofit(net, change)
    made = ra.fold(hard, scaled=False)
    assert len(folds_of(net, x)) == 2
    for other in (hard, made):
        assert same_layers(other, net) and folds_of(other, x) == folds_of(net, x)
    data = ra.data("digits/validation[:20]")
    ask = {"images": data.images, "index": data.index, "threat": ra.Linf(0.1), "passes": 1000}
    alone, beside = prove(hard, **ask), prove(refit(hard, change), **ask, like=prove(net, **ask))
    assert alone.form == beside.form and alone.form.folds


def test_other_layers_are_not_taken_for_the_same() -> None:
    net = normed()
    assert not same_layers(net, ra.load("digits-cnn"))
    hooked = normed()
    next(m for m in hooked.modules() if isinstance(m, nn.Conv2d)).register_full_backward_hook(
        lambda *_: None
    )
    assert not same_layers(net, hooked) and same_layers(net, normed())


def test_kernels_are_made_once_and_hold_no_weights_of_their_own() -> None:
    net, data = normed(), ra.data("digits/validation[:20]")
    pair = prepare(net, ra.retrofit(net, ra.JumpReLU(0.5)), data, ra.Linf(0.1))
    for subject in (pair.before, pair.after):
        for source in subject.sources:
            first, second = source.make().lean, source.make().lean
            assert first is not second, "each attack begins at the widest kernel"
            assert list(first.forms) == list(second.forms)
        own = {p.data_ptr() for p in subject.net.lean.parameters()}
        if getattr(subject.net.lean, "retrofit", None) is not None:
            assert {p.data_ptr() for p in first.parameters()} <= own


def test_a_refit_that_shares_its_weights_leaves_the_net_as_it_is() -> None:
    hard, x = ra.retrofit(ra.load("digits-cnn"), ra.JumpReLU(0.5)), torch.rand(4, 1, 8, 8)
    expected = hard(x)
    shared, copied = refit_sharing(hard, ra.JumpReLU(1.0)), refit(hard, ra.JumpReLU(1.0))
    assert torch.equal(shared(x), copied(x)) and shared.retrofit == copied.retrofit
    assert torch.equal(hard(x), expected) and hard.retrofit.activation == ra.JumpReLU(0.5)
    assert [m.activation for m in installed(hard).values()] == [ra.JumpReLU(0.5)] * 3
    pairs = zip(hard.parameters(), shared.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)


def test_another_question_about_the_same_network_does_not_trace_it_again(tracings) -> None:
    net, data = normed(), ra.data("digits/validation[:20]")
    for eps in (0.1, 0.2, 0.3):
        prove(net, data.images, data.index, ra.Linf(eps), passes=1000)
    assert len(tracings) == 1
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).running_mean += 0.1
    prove(net, data.images, data.index, ra.Linf(0.1), passes=1000)
    assert len(tracings) == 2, "a changed network is looked at anew"
