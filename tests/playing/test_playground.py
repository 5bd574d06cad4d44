"""The playground computes in a browser what torch computes, at both widths, without an error."""

import json
import re
from dataclasses import replace

import pytest
import torch
from browser import look
from torch import nn
from torch.nn import functional as F

import retroact as ra
from retroact.activations.channel_shift import ChannelShift
from retroact.auditing.numbers import AuditNumbers, Pair
from retroact.crafting.goals import Aim
from retroact.crafting.losses import loss_of
from retroact.playing import measured
from retroact.playing.layers import NotALineError, layers_of
from retroact.playing.playground import data_of
from retroact.retrofitting.installed import installed
from retroact.retrofitting.lean import Form, folds_of

SHARPNESS, KAPPA, ALPHA = 8.0, 0.3, 3.0


class Mixed(nn.Module):
    """One of each kind of layer, with strides, groups, padding and a cap."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 5, stride=2, padding=2), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1, dilation=1, groups=2, bias=False)
        self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.shrink = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu6(self.norm1(self.conv1(x)))
        x = self.pool(F.relu(self.norm2(self.conv2(x))))
        x = self.shrink(F.avg_pool2d(self.norm3(x), 2, padding=1))
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


def mixed():
    torch.manual_seed(0)
    module = Mixed()
    for norm in (module.norm1, module.norm2, module.norm3):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    return ra.Classifier(module, 0.13, 0.31, shape=(1, 28, 28), name="mixed")


def shifted(net, folder, draw):
    """The network with shifts, so many as each site has channels."""
    shifts = {site.name: draw(site.shape[0]) for site in ra.sites(net)}
    return ra.retrofit(net, ra.write_shifts(folder / "shifts.safetensors", shifts))


def rounded(net, x):
    """The network as the page has it: norms folded, weights and shifts as half floats; in
    doubles."""
    lean = Form(folds_of(net, x) or ())(net)
    for module in lean.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for p in module.parameters():
                p.data = p.data.half().float()
        if isinstance(module, ChannelShift):
            module.shift = module.shift.half().float()
    return lean.double()


def answers(net, x, label, loss):
    """Logits and input gradient, as torch has them."""
    x = x.half().double()[None].requires_grad_(True)
    logits = net(x)
    aim = Aim(torch.tensor([label]))
    (gradient,) = torch.autograd.grad(loss_of(loss)(logits, aim).sum(), x)
    return logits[0].detach(), gradient[0].flatten()


PROBE = """
addEventListener("load", async () => {
  const ready = async () => {
    while (document.body.dataset.state !== "ready") await new Promise((go) => setTimeout(go, 20));
  };
  await ready();
  const model = JSON.parse(document.getElementById("model").textContent);
  const numbers = Engine.halves(model.numbers), size = 784;
  const computed = (innerWidth > 500 ? ASKED : []).map(([name, how, row, y, loss]) => {
    const net = Engine.network(model.nets[name], numbers), start = model.images[row][0];
    const made = Engine.gradient(net, numbers.slice(start, start + size), how, loss, y);
    return [Array.from(made.logits), Array.from(made.gradient)];
  });
  const choose = async (name, value) => {
    document.querySelector(`input[name=${name}][value=${value}]`).click();
    await ready();
    return document.getElementById("said").textContent;
  };
  const said = [];
  for (const kind of ["plain", "slope", "hardened"]) said.push(await choose("kind", kind));
  for (let i = 0; i < 12; i++)
    document.getElementById("pad").dispatchEvent(
      new KeyboardEvent("keydown", { key: "ArrowDown", shiftKey: true }));
  await ready();
  said.push(document.getElementById("because").textContent);
  const drawn = document.querySelector("#card-clean .decided").textContent;
  const shown = [...document.querySelectorAll("svg")].map((svg) => svg.getAttribute("aria-label"));
  parent.postMessage({ width: innerWidth, needs: document.documentElement.scrollWidth, computed,
    said, shown, drawn, address: location.hash,
    agreement: document.getElementById("agreement").textContent,
    unnamed: [...document.querySelectorAll("input")].filter((i) => !i.labels.length).length }, "*");
});"""


def asking(asked):
    """The probe, with what is to be computed."""
    return PROBE.replace("ASKED", json.dumps(asked))


def numbers(eps, name="mixed + JumpReLU(kappa=0.3)"):
    return AuditNumbers(
        n=40,
        effect="HARMFUL",
        claim="MASKED",
        mechanism="jump",
        clean=Pair(1.0, 0.975),
        claimed=Pair(0.9 - eps, 0.95 - eps),
        verified=Pair(0.9 - eps, 0.7 - eps),
        p=0.01,
        names=Pair("mixed", name),
        data="digits[:40]",
        threat=f"Linf(eps={eps})",
    )


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    return torch.rand(24, 1, 28, 28), torch.arange(24) % 10


@pytest.mark.slow
def test_the_page_computes_what_torch_computes_at_both_widths(tmp_path, images):
    plain, lenet = mixed(), ra.load("lenet-mnist")
    hard = shifted(lenet, tmp_path, lambda c: 0.1 * torch.randn(c))
    page = ra.playground(
        plain, tmp_path / "play.html", data=images, hardened=hard, curves=[numbers(0.1)]
    )
    x = images[0]
    jump, slope = ra.JumpReLU(KAPPA), ra.SReLU(ALPHA)
    nets = {
        ("plain", "plain"): plain,
        ("plain", "jump"): ra.retrofit(plain, jump),
        ("plain", "kernel"): ra.retrofit(plain, jump.smoothed(SHARPNESS)),
        ("plain", "slope"): ra.retrofit(plain, slope),
        ("hardened", "hardened"): hard,
    }
    asked, expected = [], []
    for (name, kind), net in nets.items():
        ready = rounded(net, x[:2])
        for row, loss in ((0, "cross_entropy"), (3, "margin")):
            label = 1 + row
            how = {"kind": {"kernel": "jump"}.get(kind, kind), "kappa": KAPPA, "alpha": ALPHA}
            how |= {"sharpness": SHARPNESS} if kind == "kernel" else {}
            asked.append((name, how, row, label, loss))
            expected.append(answers(ready, x[row], label, loss))
    told = look(page, tmp_path, asking(asked))
    for (name, how, *_), found, wanted in zip(asked, told[1280]["computed"], expected, strict=True):
        for mine, torchs in zip(found, wanted, strict=True):
            mine, size = torch.tensor(mine, dtype=torch.float64), torchs.abs().max()
            assert size > 0 and (mine - torchs).abs().max() <= 1e-4 * size, (name, how)
    for width, one in told.items():
        assert one["needs"] <= width, f"the page is wider than {width} px"
        assert one["unnamed"] == 0 and all(one["said"]) and all(one["shown"])
        assert "no true class" in one["said"][-1] and one["drawn"].startswith("decided ")
        assert "kind=hardened" in one["address"] and "image=drawn" in one["address"]
        assert float(re.search(r"at most (\S+) %", one["agreement"])[1]) < 1.0


def test_the_page_asks_for_nothing(tmp_path, images):
    page = ra.playground(mixed(), tmp_path / "play.html", data=images).read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(|fetch\(|import\(""", page)
    assert "default-src 'none'" in page and "--curves audit.json" in page
    model = json.loads(re.search(r'id="model">(.*?)</script>', page, re.S)[1])
    assert len(model["images"]) == 20 and model["labels"][:11] == [*range(10), 0]
    assert model["rows"][:11] == [*range(11)] and "hardened" not in model["nets"]


def test_what_a_page_does_not_know_is_named(tmp_path, images):
    class Other(Mixed):
        def forward(self, x):
            return super().forward(F.gelu(x) + x)

    odd = ra.Classifier(Other(), shape=(1, 28, 28))
    with pytest.raises(NotALineError, match=r"gelu.*branch at add"):
        ra.playground(odd, tmp_path / "play.html", data=images)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 1400), nn.ReLU(), nn.Linear(1400, 10))
    with pytest.raises(ValueError, match=r"2\.2 MB of weights.*at most 2 MB"):
        ra.playground(wide, tmp_path / "play.html", data=images)
    with pytest.raises(ValueError, match="does not say what its data are"):
        ra.playground(wide, tmp_path / "play.html")
    assert not (tmp_path / "play.html").exists()


def test_the_layers_are_read_with_their_shifts_and_caps(tmp_path):
    net = ra.load("digits-cnn")
    hard = shifted(net, tmp_path, lambda c: torch.full((c,), 0.25))
    acts = [layer for layer in layers_of(hard, torch.rand(2, 1, 8, 8)) if layer.op == "act"]
    assert [a.settings["site"] for a in acts] == list(installed(hard))
    assert [float(a.tensors["shift"][0]) for a in acts] == [0.25] * 3
    capped = layers_of(mixed(), torch.rand(2, 1, 28, 28))
    assert [a.settings["cap"] for a in capped if a.op == "act"] == [6.0, None, None]
    assert [a.op for a in capped].count("affine") == 3  # mean, std, and the norm behind the pool


def test_curves_are_those_of_the_audits(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(numbers(0.2).to_json()))
    (one,) = measured.curves_of([file, numbers(0.1)])
    assert (one["kind"], one["name"], one["n"]) == ("jump", "JumpReLU(kappa=0.3)", 40)
    assert [p["eps"] for p in one["points"]] == [0.0, 0.1, 0.2]
    assert [round(p["verified"], 3) for p in one["points"]] == [0.975, 0.6, 0.5]
    assert measured.curves_of([numbers(0.1, "hard.safetensors")])[0]["kind"] == "hardened"
    with pytest.raises(ValueError, match="L-infinity"):
        measured.curves_of([replace(numbers(0.1), threat="L2(eps=0.5)")])
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no audit"):
        measured.curves_of([file])


def test_the_command_writes_the_page_and_measures_the_curves(call, tmp_path, monkeypatch):
    asked = []

    def audited(net, change, data, threat, **how):
        asked.append((ra.show(change), len(data), ra.show(threat), how["battery"], how["seed"]))
        found = numbers(threat.eps, f"digits-cnn + {ra.show(change)}")
        return type("Made", (), {"numbers": lambda self: found})()

    monkeypatch.setattr(measured, "audit", audited)
    words = ("playground", "digits-cnn", "--out", "play.html", "--n", "12", "--radii", "0.05,0.1")
    code, out, err = call(*words, "--kappa", "0.5", "--json")
    assert code == 0, err
    assert json.loads(out)["page"] == "play.html" and json.loads(out)["kB"] < 200
    assert asked == [
        (change, 12, f"Linf(eps={eps})", "quick", 0)
        for change in ("JumpReLU(kappa=0.5)", "SReLU(alpha=100.0)")
        for eps in (0.05, 0.1)
    ]
    page = (tmp_path / "play.html").read_text()
    assert "About" not in page and 'id="plot-curves"' in page and '"kappa": 0.5' in page
    assert data_of(ra.load("digits-cnn")) == "digits"
    for more in (("--curves", "a.json"), ("--radii", "x")):
        assert call(*words, *more)[0] == 2
