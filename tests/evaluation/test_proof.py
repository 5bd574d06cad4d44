"""A lean form is proved to compute the same, or it is not used; where it differs later, the network
is attacked."""

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import retroact as ra
from retroact.evaluation import proof
from retroact.evaluation.proof import Proved, alike, craft_on, leave_as_is, prove, prove_same

EPS = ra.Linf(0.1)


def images(n=24, shape=(1, 8, 8), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def data_of(net, n=24, shape=(1, 8, 8)):
    x = images(n, shape)
    with torch.no_grad():
        return ra.Images.of(x, net(x).argmax(1))


def proved(net, n=24, shape=(1, 8, 8), threat=EPS, **how):
    return prove(net, images(n, shape), torch.arange(n), threat, passes=100, **how)


class Flattens(nn.Module):
    """A conv net as tutorials write it: what follows the conv is flattened in some way."""

    def __init__(self, how, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.conv, self.fc = how, nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 10)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        if norm:
            self.norm.running_mean.normal_(0, 0.1), self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        if self.how == "as_strided":
            return self.fc(x.as_strided((len(x), 288), (288, 1)))
        return self.fc(x.view(x.size(0), -1) if self.how == "view" else x.flatten(1))


@pytest.mark.parametrize(
    ("how", "norm", "form"),
    [
        ("view", False, "frozen"),
        ("view", True, "folded"),
        ("flatten", True, "folded, channels last"),
        ("flatten", False, "channels last"),
        # runs in channels last, and computes another function there
        ("as_strided", False, "frozen"),
    ],
)
def test_the_leanest_form_that_computes_the_same(how, norm, form):
    net = Flattens(how, norm).eval()
    on = proved(net)
    assert str(on) == form
    assert alike(net(images()), on.lean(images())).all()
    record = ra.evaluate(net, data_of(net), ra.PGD(steps=10), EPS)
    assert record.pedigree["form"] == form and record.pedigree["again"] == 0


@pytest.mark.parametrize(
    "attack", [ra.FGSM(), ra.PGD(steps=5), ra.DeepFool(), ra.Square(queries=20)], ids=str
)
def test_attacks_run_on_a_net_that_views(attack):
    net = ra.Classifier(Flattens("view"), shape=(1, 8, 8))
    record = ra.evaluate(net, data_of(net), attack, ra.Linf(0.3))
    bare = ra.evaluate(lambda x: net(x), data_of(net), attack, ra.Linf(0.3))
    assert np.array_equal(record.adversarial, bare.adversarial) and ra.robust_accuracy(record) < 1.0


class Mixer(nn.Module):
    """A batch norm over tokens, of which there are as many as features: folded, it would be another
    function."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.bn, self.out = (
            nn.Linear(8, width),
            nn.BatchNorm1d(8),
            nn.Linear(8 * width, 10),
        )
        self.bn.running_mean.normal_(), self.bn.running_var.uniform_(0.2, 3)

    def forward(self, x):
        return self.out(F.relu(self.bn(self.fc(x[:, 0]))).flatten(1))


@pytest.mark.parametrize("width", [8, 16])
def test_a_norm_over_tokens_is_attacked_as_it_is(width):
    net = ra.Classifier(Mixer(width), shape=(1, 8, 8))
    record = ra.evaluate(net, data_of(net), ra.DeepFool(), ra.L2(5.0))
    bare = ra.evaluate(lambda x: net(x), data_of(net), ra.DeepFool(), ra.L2(5.0))
    assert ra.robust_accuracy(record) == ra.robust_accuracy(bare) == 0.0


class Copied(nn.Module):
    """A net whose copies compute what `otherwise` makes of the logits: a form that lies."""

    def __init__(self, otherwise):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.otherwise, self.copy = nn.Linear(64, 4), otherwise, False

    def forward(self, x):
        logits = self.fc(x.flatten(1))
        return self.otherwise(x, logits) if self.copy else logits

    def __deepcopy__(self, memo):
        made = Copied(self.otherwise)
        made.copy = True
        return made.train(self.training)


def broken(x, logits):
    raise RuntimeError("not here")


LIES = {
    "other logits": lambda x, z: z + 1e-2 * z.detach().flip(1),
    "a little off": lambda x, z: z + 3e-4 * (z.detach().amax(1, keepdim=True) - z.detach()),
    "other gradients": lambda x, z: (
        z.detach() + (x.flatten(1)[:, :4] - x.flatten(1)[:, :4].detach())
    ),
    "no gradient": lambda x, z: z.detach(),
    "NaN": lambda x, z: z * float("nan"),
    "other classes": lambda x, z: z[:, :3],
    "an exception": broken,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_copy_that_computes_something_else_is_not_used(lie):
    net = Copied(LIES[lie])
    assert proved(net).lean is net
    assert ra.evaluate(net, data_of(net), ra.PGD(steps=20), EPS).pedigree["form"] == "itself"


def test_only_logits_are_compared_where_no_gradient_is_asked_for():
    net = Copied(LIES["other gradients"])
    assert proved(net).lean is net and proved(net, gradients=False).lean is not net


def test_a_copy_that_computes_the_same_is_used():
    net = Copied(lambda x, z: z * (1 + 1e-6))
    assert proved(net).lean is not net and str(proved(net)) == "frozen"


def test_what_differs_only_where_the_attack_ends_is_attacked_itself():
    """A form that says the right thing near the images, and that nothing fools where an attack gets
    to."""
    net = Copied(None)
    data = data_of(net, 48)
    near, far = data.images, ra.Linf(0.3)

    class Firm(nn.Module):
        def forward(self, x):
            moved = (x[:, None] - near[None]).flatten(2).abs().amax(2).amin(1, keepdim=True) > 0.01
            return torch.where(moved, net(x) + 9 * F.one_hot(net(near[:1]).argmax(1), 4), net(x))

    runs = [(ra.PGD(steps=10, random_start=False), near, data.labels, data.index, [far])] * 2
    plain, again = (
        craft_on(on, *run)[0]
        for on, run in zip((leave_as_is(net), Proved(net, Firm())), runs, strict=True)
    )
    fooled = int((plain.logits.argmax(1) != data.labels).sum())
    assert fooled > 24 and again.again > 5
    assert int((again.logits.argmax(1) != data.labels).sum()) >= fooled
    # what both runs cost is counted
    assert again.outcome.gradients.sum() > plain.outcome.gradients.sum()


def test_a_run_that_is_cheaper_than_the_proof_uses_the_network_itself():
    net = ra.load("digits-cnn")
    assert prove(net, images(8), torch.arange(8), EPS, passes=1).lean is net
    assert prove(net, images(8), torch.arange(8), EPS, passes=100).lean is not net
    assert ra.evaluate(net, ra.data("digits[:8]"), ra.FGSM(), EPS).pedigree["form"] == "itself"


def test_the_same_question_is_asked_once_and_a_changed_net_is_asked_again(monkeypatch):
    asked = []
    monkeypatch.setattr(proof, "_ask", lambda *of, ask=proof._ask: asked.append(1) or ask(*of))
    net = Flattens("flatten", norm=True).eval()
    first = proved(net)
    assert proved(net).lean is first.lean and len(asked) == 1
    net.fc.weight.data.mul_(2)
    assert proved(net).lean is not first.lean and len(asked) == 2
    net.how = "view"
    assert str(proved(net)) == "folded" and len(asked) == 3
    proved(net, threat=ra.Linf(0.2)), proved(net, n=23)
    assert len(asked) == 5
    net.kept = {"mask": [torch.ones(3)]}
    proved(net)
    net.kept["mask"][0][1] = 0.0
    proved(net), proved(net)
    assert len(asked) == 7


def test_weights_without_plain_bits_are_no_hindrance():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.fc = nn.Parameter(torch.randn(5, 64).to_sparse()), nn.Linear(5, 4)

        def forward(self, x):
            return self.fc(torch.sparse.mm(self.first, x.flatten(1).T).T)

    net = Sparse()
    record = ra.evaluate(net, data_of(net), ra.PGD(steps=10), ra.Linf(0.3))
    assert ra.robust_accuracy(record) < 0.5


def test_nothing_is_remembered_of_a_net_that_is_gone():
    net = Flattens("flatten")
    proved(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_jump_may_flip_a_unit():
    """With many points one in a hundred may differ, and the copy is still used; two may not."""
    pixel = images(64).flatten(1)[:, 0]

    def flipped(which):
        return lambda x, z: (
            z + 0.5 * torch.isin(x.flatten(1)[:, 0], which)[:, None].to(z) * torch.eye(4)[0]
        )

    one, three = Copied(flipped(pixel[:1])), Copied(flipped(pixel[:48:16]))
    assert proved(one, n=64).lean is not one
    assert proved(three, n=64).lean is three


def test_logits_are_compared_with_their_own_spread():
    z = torch.tensor([[1000.0, 1001.0, 1003.0]], dtype=torch.float64)
    assert alike(z, z + 1e-4).all() and not alike(z, z + 1e-3).any()
    assert not alike(z, z[:, :2]).any()
    assert alike(z * float("nan"), z * float("inf")).all() and not alike(z, z * float("nan")).any()


def test_a_scaled_network_is_the_same_by_its_scale():
    net = ra.load("digits-cnn")
    loud = lambda x: 1024 * net(x)  # noqa: E731
    how = (images(), torch.arange(24), EPS)
    assert prove_same(loud, net, *how, scale=1024.0) and not prove_same(loud, net, *how)


def test_both_networks_of_a_transfer_are_proved():
    net, source = ra.load("digits-cnn"), Flattens("view", norm=True).eval()
    record = ra.evaluate(net, ra.data("digits[:20]"), ra.PGD(steps=10), EPS, source=source)
    assert (record.pedigree["form"], record.pedigree["source_form"]) == ("channels last", "folded")
