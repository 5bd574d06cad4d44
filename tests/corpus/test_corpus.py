"""A law over many architectures: whatever a network looks like, it is retrofitted or refused by
name, the copy that attacks run on is the network or not used, and it can be saved, exported and
pickled."""

import gc
import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from law import Walk, crafted, proved, slopes, walked
from torch import Tensor, nn
from trained import TRAINED, digits, trained

import retroact as ra
from retroact.retrofitting.export import Exported
from retroact.retrofitting.sites import survey
from retroact.retrofitting.surgery import CoverageError

pytestmark = pytest.mark.slow

TWINS = {
    *("DeiT", "DINOv2", "Swin V2", "ConvNeXt V2", "MobileNet V1"),
    *("timm ResNet", "timm ViT", "timm ConvNeXt", "timm EfficientNet", "timm RegNet-like"),
    *("timm LeViT", "TokenNorm(16, 24)"),
}
"""Built of the same parts as another one of the corpus: `make long` asks them, too."""


def asked(names: Iterable[str]) -> pytest.MarkDecorator:
    cases = [pytest.param(n, marks=[pytest.mark.long] * (n in TWINS)) for n in names]
    return pytest.mark.parametrize("name", cases)


every = asked(ARCHITECTURES)


def some(first: int, step: int) -> pytest.MarkDecorator:
    """Some architectures, for what takes long: each family has several, and what takes long in
    other ways is asked of others."""
    return asked(list(ARCHITECTURES)[first::step])


@pytest.fixture(autouse=True)
def spared():
    """The garbage collector passes over what is there already: every trace calls it, and after a
    few dozen networks it has millions of objects to look at, none of which goes away."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def looked_at_again():
    yield
    gc.unfreeze()


AT_THE_BOUNDARY = 1e-3
"""Of the spread of the logits: a decision within it is made by rounding, and two networks may
differ in it."""


def logits(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images.clone())


# -------------------------------------------------------------------------------- the corpus itself


def test_the_corpus_is_as_large_as_it_says():
    families = Counter(a.family for a in ARCHITECTURES.values())
    assert len(ARCHITECTURES) >= 40
    assert families["ours"] >= 5
    assert families["transformers"] >= 12
    assert families["timm"] >= 8
    assert families["by hand"] >= 12


@every
def test_decisions_differ_and_do_not_hang_on_rounding(name):
    made = walked(name).made
    assert len(set(made.data.labels.tolist())) >= 3
    z = logits(made.net, made.data.images)
    assert bool((z.argmax(1) == made.data.labels).all())
    assert bool(((z.amax(1) - z.amin(1)) > 0.1).all())


# ------------------------------------------------------------------------------------------ the law


@every
def test_every_site_is_replaced_or_named_in_a_refusal(name):
    walk = walked(name)
    names = [site.name for site in walk.found.sites]
    assert names
    if walk.refused is not None:
        assert isinstance(walk.refused, CoverageError), walk.refused
        assert set(walk.refused.missed) <= set(names) and walk.refused.missed
        assert all(missed in str(walk.refused) for missed in walk.refused.missed)
        return
    after = survey(walk.hard, also=walk.architecture.also)
    assert sorted(after.installed) == sorted(names)
    assert after.sites == ()
    assert [s.name for s in after.left_alone] == [s.name for s in walk.found.left_alone]


@every
def test_the_form_that_attacks_run_on_is_the_network(name):
    walk = walked(name)
    images = walk.made.data.images
    on = [walk.on] if walk.hard is None else [walk.on, proved(walk.hard, walk.made.data)]
    for each in on:
        z, w = logits(each.network, images), logits(each.lean, images)
        spread = z.amax(1) - z.amin(1)
        assert float(((z - w).abs().amax(1) / spread).median()) < 1e-4
        assert torch.equal(z.argmax(1), w.argmax(1))


@some(0, 3)
def test_an_image_alone_has_the_gradient_that_it_has_in_company(name):
    # torch's batch norm in eval mode has been seen to get a batch of one wrong, and attacks end
    # with one image left
    walk = walked(name)
    images = walk.made.data.images
    for net in {walk.on.network, walk.on.lean}:
        together = slopes(net, images)
        alone = torch.cat([slopes(net, image[None]) for image in images])
        assert float(torch.cosine_similarity(alone.flatten(1), together.flatten(1)).min()) > 0.999


@some(1, 5)
def test_attacks_end_alike_on_the_network_and_on_its_form(name):
    walk = walked(name)
    before = walk.made.data.images.clone()
    fates = crafted(walk)
    plain, lean = fates.pop("DeepFool")
    assert int(plain.fooled.sum()) >= 4
    assert torch.equal(plain.fooled, lean.fooled)
    torch.testing.assert_close(lean.norm, plain.norm, rtol=1e-3, atol=0.0)
    for attack, (plain, lean) in fates.items():
        # where the decision of one run hangs on rounding, the two may part
        sure = (plain.margin.abs() > AT_THE_BOUNDARY) | (lean.margin.abs() > AT_THE_BOUNDARY)
        assert torch.equal(plain.fooled[sure], lean.fooled[sure]), attack
    assert torch.equal(walk.made.data.images, before)


@some(2, 3)
def test_the_retrofitted_network_is_saved_and_loaded(name, tmp_path):
    walk = walked(name)
    net = walk.made.net if walk.hard is None else walk.hard
    path = ra.save(net, tmp_path / "net.safetensors")
    again = ra.load(path, into=walk.architecture.fresh())
    images = walk.made.data.images
    assert torch.equal(logits(again, images), logits(net, images))


@every
def test_the_retrofitted_network_pickles_where_the_network_does(name):
    walk = walked(name)
    if walk.hard is None or not _pickles(walk.made.net):
        return
    again, images = pickle.loads(pickle.dumps(walk.hard)), walk.made.data.images
    assert torch.equal(logits(again, images), logits(walk.hard, images))


def _pickles(net: nn.Module) -> bool:
    try:
        pickle.dumps(net)
    except Exception:  # a lambda, a parametrization: torch says no in many ways
        return False
    return True


# as one takes torch up to six seconds
@some(0, 9)
def test_the_retrofitted_network_exports_where_the_network_does(name, tmp_path):
    walk = walked(name)
    if walk.hard is None:
        return
    made = _exported(walk.hard, tmp_path, walk.made.data.images)
    if made is None:
        assert _exported(walk.made.net, tmp_path, walk.made.data.images) is None
        return
    assert made.agreement == 1.0
    assert made.max_difference < 1e-4


def _exported(net: nn.Module, folder: Path, images: Tensor) -> Exported | None:
    try:
        return ra.export(net, folder / "net.pt2", images=images)
    except Exception:  # a branch that depends on the data: torch says no in many ways
        return None


# residual blocks are audited all over the tests
AUDITED = [pytest.param(n, marks=[pytest.mark.long] * (n == "Skipped")) for n in TRAINED]


@pytest.mark.parametrize("name", AUDITED)
def test_a_trained_network_is_audited(name):
    net = trained(name)
    found = ra.audit(
        net,
        ra.retrofit(net, ra.JumpReLU(0.3)),
        digits("digits[:100]"),
        ra.Linf(0.03),
        battery="quick",
    )
    counts = found.verdict.counts
    assert counts.n == 100
    for side in (0, 1):
        assert counts.clean[side] > 0.75
        assert counts.verified[side] <= counts.claimed[side] < counts.clean[side]
    assert found.verdict.effect in ("NO EFFECT", "INCONCLUSIVE", "HARMFUL", "TOO STRONG A THREAT")


# ----------------------------------------------------------------------------------- taken together


def test_nearly_all_are_retrofitted_and_most_run_on_a_lean_form():
    walks: list[Walk] = [walked(name) for name in ARCHITECTURES if name not in TWINS]
    retrofitted = sum(w.hard is not None for w in walks)
    lean = sum(w.on.form is not None for w in walks)
    assert retrofitted >= 0.9 * len(walks)  # 62 of 68
    assert lean >= 0.75 * len(walks)  # 51 of 68
