"""From data to verdict at every rank, in a box that is not [0, 1]: audits of known answers."""

import json
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.audit import Audit
from retroact.auditing.battery import Battery
from retroact.auditing.selftest import Louder
from retroact.auditing.subjects import prepare
from retroact.crafting.domain import domain_of
from retroact.evaluation.proof import prove
from retroact.evaluation.record import from_bytes, images_to_bytes, to_bytes
from retroact.training.hardening import Hardening

LOW, HIGH = -2.0, 5.0
SHAPES = {"table": (8,), "series": (2, 16), "video": (1, 3, 5, 5)}
SMALL = Battery(
    steps=8,
    targets=2,
    targeted_steps=10,
    finish=20,
    trial_steps=4,
    sample=12,
    queries=60,
    alarmed_finish=20,
)
kinds = pytest.mark.parametrize("kind", SHAPES)


def known(kind: str) -> pytest.MarkDecorator:
    """One kind for each known answer, by turns, as each takes an audit; `make long` asks all."""
    others = [pytest.param(k, marks=pytest.mark.long) for k in SHAPES if k != kind]
    return pytest.mark.parametrize("kind", [kind, *others])


EPS = ra.Linf(0.9, width=7.0)


def data(kind: str, split: str = "test", n: int = 60) -> ra.Images:
    """Two classes, told apart by the mean of at most eight entries; noise in the others."""
    seed = ("train", "validation", "test").index(split)
    x = torch.randn(n, *SHAPES[kind], generator=torch.Generator().manual_seed(seed))
    y = torch.arange(n) % 2
    flat = 1.5 + 0.7 * x.flatten(1)
    flat[:, : min(8, flat.shape[1] // 4)] += 3.0 * (y[:, None] - 0.5)
    x = flat.view_as(x).clamp(LOW, HIGH)
    return ra.Images.of(x, y, split=split, shape=SHAPES[kind], low=LOW, high=HIGH)


class Body(nn.Module):
    """A network of each rank, whose ReLUs are modules, or functions."""

    def __init__(self, kind: str, functions: bool = False) -> None:
        super().__init__()
        shape = SHAPES[kind]
        convs = {"table": nn.Linear, "series": nn.Conv1d, "video": nn.Conv3d}
        norms = {"table": nn.BatchNorm1d, "series": nn.BatchNorm1d, "video": nn.BatchNorm3d}
        size = (shape[0], 12) if kind == "table" else (shape[0], 12, 3)
        self.first, self.norm = convs[kind](*size), norms[kind](12)
        with torch.no_grad():
            width = self.first(torch.zeros(1, *shape)).numel()
        self.second, self.last = nn.Linear(width, 16), nn.Linear(16, 2)
        self.one, self.two = (nn.Identity() if functions else nn.ReLU() for _ in range(2))
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.norm(self.first(x)))
        x = self.two(self.second((F.relu(x) if self.functions else x).flatten(1)))
        return self.last(F.relu(x) if self.functions else x)


@cache
def trained(kind: str) -> ra.Classifier:
    torch.manual_seed(0)
    net, train = (
        ra.Classifier(Body(kind), mean=1.5, std=2.0, shape=SHAPES[kind]),
        data(kind, "train"),
    )
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    net.train()
    for _ in range(60):
        loss = F.cross_entropy(net(train.images), train.labels)
        adam.zero_grad(), loss.backward(), adam.step()
    return net.eval().requires_grad_(False)


ASKED = {"table": "small", "series": "quick", "video": "small"}


@cache
def asked(kind: str, battery: str) -> Audit:
    """The audit of a jump, which all share that only read it."""
    spent = SMALL if battery == "small" else battery
    return ra.audit(trained(kind), "JumpReLU(0.5)", data(kind), EPS, battery=spent)


def jumped(kind: str) -> Audit:
    """The audit of a jump, with its controls or quick, by turns."""
    return asked(kind, ASKED[kind])


# ------------------------------------------------------------------------------------ known answers


@known("video")
def test_a_network_beside_itself_shows_nothing(kind):
    made = ra.audit(trained(kind), trained(kind), data(kind), EPS, battery=SMALL)
    counts = made.verdict.counts
    assert made.verdict.effect in ("NO EFFECT", "INCONCLUSIVE") and not made.alarms
    assert counts.gained == counts.lost == 0 and 0.1 < counts.verified[0] < counts.clean[0] - 0.1


@known("series")
def test_loud_logits_are_masked_by_saturation_and_gain_nothing(kind):
    verdict = ra.audit(
        trained(kind), Louder(trained(kind), 2.0**14), data(kind), EPS, battery=SMALL
    ).verdict
    assert "MASKED" in verdict.claim and verdict.mechanism == "saturation"
    assert verdict.counts.claimed_gain > 0.1 and abs(verdict.counts.verified_gain) <= 0.04


RUNS = [("series", "small"), ("table", "thorough")]
LONG = [pytest.param(*run, marks=pytest.mark.long) for run in RUNS]


@pytest.mark.parametrize(("kind", "battery"), [*ASKED.items(), *LONG])
def test_what_was_broken_lies_in_ball_and_box_and_controls_ran(kind, battery):
    made, examples = asked(kind, battery), data(kind)
    for side in made.sides:
        assert bool((side.verified <= side.claimed).all() and (side.claimed <= side.clean).all())
        assert side.examples and all(f.image.shape == SHAPES[kind] for f in side.examples)
        for f in side.examples:
            assert np.array_equal(f.image, examples.images[f.row].numpy())
            assert np.abs(f.x_adv - f.image).max() <= EPS.eps * (1 + 1e-5)
            assert f.x_adv.min() >= LOW and f.x_adv.max() <= HIGH
        if battery != "quick":
            assert {"Square", "APGD, transfer"} <= {
                r.title for r in side.attacks if r.role == "control"
            }
    assert any(f.x_adv.min() < 0 or f.x_adv.max() > 1 for f in made.after.examples)


@known("table")
def test_a_little_that_is_learned_makes_it_robust_and_the_audit_says_so(kind):
    recipe = Hardening(learn="all", steps=60, batch=60, lr=0.002)
    how = {"held": data(kind, "validation"), "keep": 0.8}
    hard = ra.harden(trained(kind), data(kind, "train", 200), EPS, recipe, **how)
    verdict = ra.audit(trained(kind), hard.net, data(kind, n=200), EPS, battery=SMALL).verdict
    assert verdict.effect == "GENUINE" and verdict.counts.verified_gain > 0.05


@known("video")
def test_the_knob_is_tuned_on_validation_data(kind):
    tuned = ra.tune(trained(kind), "JumpReLU", data(kind, "validation"), EPS, grid=(0.0, 0.5, 2.0))
    assert [p.knob for p in tuned.points] == [0.0, 0.5, 2.0]
    assert all(p.verified <= p.claimed <= p.clean for p in tuned.points)
    assert tuned.points[0].clean > 0.9 and tuned.points[0].verified < tuned.points[0].clean - 0.1


def test_a_radius_that_reaches_the_middle_of_the_box_is_refused():
    with pytest.raises(
        ValueError, match=r"every example can be turned into the same one.*below 3\.5"
    ):
        ra.audit(trained("table"), "JumpReLU(0.5)", data("table"), ra.Linf(3.5, width=7.0))
    with pytest.raises(ValueError, match=r"expected an L2 radius of at most 19\.8.*\[-2,5\]"):
        ra.evaluate(trained("table"), data("table"), "PGD", "L2(20.0)")
    with pytest.raises(ValueError, match="in a wider box say how wide"):
        ra.evaluate(trained("table"), data("table"), "PGD", "Linf(1.5)")


# ---------------------------------------------------------------------------- copies and records


@kinds
def test_modules_and_functions_are_retrofitted_alike(kind):
    plain, x = trained(kind), data(kind).images
    body = Body(kind, functions=True)
    body.load_state_dict(plain.module.state_dict())
    traced = ra.Classifier(body, mean=1.5, std=2.0, shape=SHAPES[kind])
    one, other = (ra.retrofit(net, "JumpReLU(0.5)") for net in (plain, traced))
    with torch.no_grad():
        assert torch.equal(one(x), other(x)) and not torch.equal(one(x), plain(x))
        body = plain.module
        z = body.norm(body.first((x - 1.5) / 2.0))
        z = body.second(z.where(z > 0.5, 0.0).flatten(1))
        torch.testing.assert_close(one(x), body.last(z.where(z > 0.5, 0.0)))


@kinds
def test_a_lean_form_folds_the_norm_and_leaves_channels_where_they_are(kind):
    examples = data(kind)
    how = {"passes": 1000, "domain": domain_of(examples)}
    proved = prove(trained(kind), examples.images, examples.index, EPS, **how)
    assert str(proved) == "folded"
    with torch.no_grad():
        torch.testing.assert_close(
            proved.lean(examples.images), trained(kind)(examples.images), rtol=1e-3, atol=1e-4
        )


@kinds
def test_kernels_are_put_into_networks_of_every_rank(kind):
    hard = ra.retrofit(trained(kind), "JumpReLU(0.5)")
    before, after = prepare(trained(kind), hard, data(kind), EPS)
    assert len(after.sources) == 3 and before.sources == ()
    assert len(before.derived) == len(after.derived) > 3


@kinds
def test_a_record_keeps_examples_of_every_rank(kind):
    record = ra.evaluate(trained(kind), data(kind), "APGD(steps=5)", EPS, keep=7)
    again = from_bytes(to_bytes(record), images_to_bytes(record))
    assert again == record and again.examples.shape == (7, *SHAPES[kind])
    assert np.array_equal(again.examples, record.examples)
    moved = np.abs(again.examples - again.originals).reshape(7, -1).max(1)
    assert np.array_equal(moved, record.distance[:7, 3]) and float(moved.max()) > 0.5
    assert record.pedigree["box"] == [LOW, HIGH]


def test_pixels_of_the_usual_box_say_nothing_of_it():
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    record = ra.evaluate("digits-cnn", (x, y), "FGSM", "Linf(0.1)")
    assert "box" not in record.pedigree


# --------------------------------------------------------------------------------------- the pages


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of evidence of a jump's audit, written once: the plots of its page take
    seconds."""
    return cache(lambda kind: ra.write_evidence(jumped(kind), tmp_path_factory.mktemp(kind) / "e"))


@kinds
def test_the_page_of_an_audit_speaks_of_examples_and_draws_none(kind, kept, tmp_path):
    made, page = jumped(kind), (kept(kind) / "audit.html").read_text()
    text, numbers = (
        ra.report(made, tmp_path / f"audit.{suffix}").read_text() for suffix in ("md", "json")
    )
    assert "Only images are drawn" in page and "The examples that decide most" in page
    assert "data:image" not in page and "of the examples withstand" in page
    for said in (page, text):
        assert " images " not in said.replace("Only images are", "")
    assert json.loads(numbers)["n"] == 60


MODULE = """
import torch
from torch import nn
import retroact as ra

def build():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear({entries}, 12), nn.ReLU(), nn.Linear(12, 2)
    return ra.Classifier(nn.Sequential(*layers), mean=1.5, std=2.0, shape={shape})
"""


@kinds
def test_cells_of_every_rank_are_swept_stored_and_reported(kind, tmp_path, monkeypatch):
    shape = SHAPES[kind]
    text = MODULE.format(entries=int(np.prod(shape)), shape=shape)
    (tmp_path / f"walk_{kind}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    store, name = ra.Store(tmp_path / "s.sqlite"), f"walk_{kind}:build"
    cells = ra.grid(
        nets=[name],
        activations=[None, "JumpReLU(0.2)"],
        attacks=["FGSM", "Square(queries=20)"],
        threats=[EPS, EPS.times(0.5)],
        data=data(kind),
    )
    assert len(cells) == 8
    ra.sweep(cells, store, keep=3)
    records = [store.read(ra.key(cell.locked()), images=True) for cell in cells]
    assert all(
        r.examples.shape == (3, *shape) and r.pedigree["box"] == [LOW, HIGH] for r in records
    )
    assert all(r == ra.sweep([cell], store)[0] for r, cell in zip(records, cells, strict=True))
    page = ra.report(store, tmp_path / "page.html").read_text()
    assert "Only images are drawn" in page and "data:image" not in page
    assert "eps, entries of [-2, 5]" in page


@kinds
def test_what_was_broken_is_kept_and_judged_again(kind, kept):
    folder = kept(kind)
    hard = ra.retrofit(trained(kind), ra.JumpReLU(0.5))
    how = {"before": trained(kind), "after": hard}
    assert ra.verify(folder, **how, data=data(kind)).holds
    found = ra.verify(folder, before=hard, after=trained(kind), data=data(kind))
    assert not found.holds and len(found.notes) == 2
