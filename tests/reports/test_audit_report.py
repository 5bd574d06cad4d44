"""The report of an audit: every number is the audit's, the page stands on its own, and nothing is
hidden."""

import base64
import io
import json
import math
import re
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from PIL import Image

import retroact as ra
from retroact.auditing.deciding import SHOWN, deciding
from retroact.auditing.numbers import AttackResult, AuditNumbers, Pair
from retroact.crafting.domain import Domain
from retroact.experiments.store import Store
from retroact.reports import audited, plots
from retroact.reports.fallen import Case, show
from retroact.reports.report import report

PNG = r'src="data:image/png;base64,([^"]+)"'


@dataclass
class Example:
    row: int
    label: int
    decided: int
    image: Any
    x_adv: Any
    by: str
    role: str = "white box"
    turn: int = 0


@dataclass
class Side:
    examples: list[Example]
    verified: Any = field(default_factory=lambda: np.ones(80, bool))
    clean: Any = field(default_factory=lambda: np.ones(80, bool))
    attacks: list[Any] = field(default_factory=list)

    @property
    def broken_by(self) -> Any:
        turns = np.full(80, -1)
        for example in self.examples:
            turns[example.row] = example.turn
        return turns


@dataclass
class Told:
    """What a report asks of an audit, with numbers of one's own."""

    stored: dict[str, Any]
    sides: tuple[Side, Side]
    domain: Domain = field(default_factory=lambda: Domain((1, 2, 2)))
    trails: list[Any] = field(default_factory=list)

    def numbers(self) -> AuditNumbers:
        return AuditNumbers.from_json(self.stored)


def reading(
    title: str, mechanism: str, value: float, twin: float, fired: bool, **more: Any
) -> dict[str, Any]:
    said = {
        "about": f"What {title} asks.",
        "source": "Somebody 2020",
        "ratio": False,
        "threshold": 0.05,
    }
    return (
        {"title": title, "mechanism": mechanism, "value": value, "twin": twin, "fired": fired}
        | said
        | more
    )


def ran(title: str, broken: int, **more: Any) -> dict[str, Any]:
    plain = {
        "title": title,
        "attack": f"{title}(steps=7)",
        "role": "white box",
        "asked": 80,
        "felled": broken,
    }
    return plain | {"gradients": 560, "zero_gradients": 0, "queries": 640, "seconds": 1.25} | more


def stored(**changed: Any) -> dict[str, Any]:
    """The JSON of an audit of version 0.1.0."""
    return _stored() | changed


def numbers() -> AuditNumbers:
    return AuditNumbers.from_json(stored())


def _stored() -> dict[str, Any]:
    shared = {
        "twin": "net",
        "network": "net + <JumpReLU>",
        "data": "d[:80]",
        "threat": "Linf(eps=0.1)",
        "n": 80,
    }
    said = {
        "effect": "NO EFFECT",
        "claim": "MASKED, WEAK PROTOCOL",
        "mechanism": "jump",
        "doubts": [],
        "needs": 0,
    }
    texts = {
        "verdict": "NO EFFECT; whole sentence",
        "plainly": "The change does not make it harder & safer.",
    }
    shares = {
        "clean": 0.95,
        "clean_twin": 1.0,
        "claimed": 0.8,
        "claimed_twin": 0.5,
        "verified": 0.3,
    }
    counts = {
        "verified_twin": 0.25,
        "gained": 6,
        "lost": 2,
        "p": 0.289,
        "interval": [-0.0125, 0.1125],
    }
    curve = {"loss": [0.1, 0.5, 0.9], "fidelity": [-30.0, 0.9, 1.0, 40.0], "margin": 9.5}
    run = {
        "claimed_attack": "PGD(steps=40)",
        "battery": "Battery(steps=30)",
        "indicators": [
            reading("gradient fidelity", "jump", 0.475, 0.0, True),
            reading("logit scale", "saturation", 12.0, 11.0, False, ratio=True, threshold=5.0),
        ],
        "attacks": {
            "network": [ran("PGD", 10), ran("APGD", 40, zero_gradients=560)],
            "twin": [ran("FGSM", 11)],
        },
        "curves": {"network": curve, "twin": curve | {"fidelity": [1.0, 1.01]}},
        "pedigree": {
            "seed": 3,
            "device": "cpu",
            "machine": "m",
            "versions": "python 3, torch 2",
            "gradients_per_image": [7.0, 14.0],
            "seconds": [1.25, 2.5],
        },
    }
    return shared | said | texts | shares | counts | run


@pytest.fixture
def told() -> Told:
    image = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    broken = Example(5, 7, 1, image, np.clip(image + 0.1, 0, 1), "APGD <margin>")
    return Told(stored(), (Side([]), Side([broken])))


def test_the_page_stands_on_its_own_for_phones_and_for_the_dark(told, tmp_path):
    text = report(told, tmp_path / "a.html", title="A & B").read_text()
    assert not re.search(r"<(link|iframe)|(src|href)=.(?!data:|#)|@import|url\((?!#)|fetch", text)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert (
        "<h1>A &amp; B</h1>" in text
        and "net + &lt;JumpReLU&gt;" in text
        and "<JumpReLU>" not in text
    )
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert text.count("<svg") == 4 and "var(--blue)" in drawn and "currentColor" in drawn
    # nothing that would vanish on the other ground
    assert not re.search(r"#(000000|ffffff|2563a8|1d2733)", drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_the_page_says_what_the_audit_says(told):
    text = audited.page(told)
    assert (
        "The change does not make it harder &amp; safer." in text
        and "NO EFFECT; whole sentence" in text
    )
    for badge in ("NO EFFECT", "MASKED by jump", "WEAK PROTOCOL"):
        assert re.search(rf'class="badge[^"]*">{badge}</span>', text)
    for said in (
        "McNemar&#39;s exact p = 0.29",
        "-1.2 to +11.2",
        "6 of 80 images",
        "2 only before",
        "n = 80",
        "Seed 3",
    ):
        assert said in text, said
    for said in (
        "PGD(steps=7)",
        "APGD(steps=7)",
        "FGSM(steps=7)",
        "What gradient fidelity asks.",
        "python 3, torch 2",
    ):
        assert said in text, said
    assert text.count('class="fired">fired') == 1 and text.count('class="silent">silent') == 1
    assert '<td class="number fired">560</td>' in text and "&gt; before × 5" in text


def test_the_table_has_both_networks_and_wilsons_intervals():
    clean, claimed, verified = audited.table(numbers())
    assert [r.what for r in (clean, claimed, verified)] == ["clean", "claimed", "verified"]
    assert (verified.accuracy, verified.difference) == ((0.25, 0.3), "+5.0")
    assert verified.bounds == (ra.wilson(20, 80), ra.wilson(24, 80))
    assert claimed.difference == "+30.0" and clean.difference == "-5.0"


def test_the_images_that_were_broken_are_shown_pixel_by_pixel(told):
    text = audited.page(told)
    before, after, moved = (
        np.array(Image.open(io.BytesIO(base64.b64decode(p))).convert("L"))
        for p in re.findall(PNG, text)
    )
    shown = told.sides[1].examples[0]
    assert (
        np.abs(before / 255 - shown.image[0]).max() < 0.005
        and np.abs(after / 255 - shown.x_adv[0]).max() < 0.005
    )
    caption = (
        r"image 5: 7 → <span class=\"wrong\">1</span> after the change, robust before the change;"
    )
    assert re.search(caption + r" moved by 0\.100<span class=.about.>APGD &lt;margin&gt;<", text)
    says = "image 5, class 7, decided as 1 under APGD &lt;margin&gt; (after the change, robust"
    assert f'alt="{says}' in text and 'alt=""' not in text and 'id="image-5"' in text
    assert (moved < 255).all()  # every pixel has moved


def colours_of(address: str) -> Any:
    """The RGBA of a picture (h, w, 4)."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGBA"))


def test_what_has_not_moved_is_clear_so_that_no_picture_is_white_in_the_dark():
    image = np.full((1, 1, 3), 0.5, np.float32)
    taken, still, added = colours_of(plots.moved(image, image + np.float32([-0.1, 0, 0.1])))[0]
    assert still[3] == 0 and taken[3] == added[3] == 255
    assert taken[2] > taken[0] and added[0] > added[2]
    for colours in (plots.REDS, plots.BLUES):
        assert colours(0)[3] == 0 and colours(255)[3] == 1


def test_every_colour_of_a_curve_follows_the_style_sheet_in_light_and_dark():
    style = files("retroact.reports").joinpath("style.css").read_text()
    for colour in (*plots.CYCLE, plots.INK, plots.FAINT, plots.BEFORE, plots.AFTER):
        name = plots.THEMED[colour].removeprefix("var(").removesuffix(")")
        assert name == "currentColor" or style.count(f"{name}: #") == 3  # light, dark, on paper
    series = [plots.Series(f"{i}", [1, 2], [i, i], colour=i) for i in range(len(plots.CYCLE))]
    drawn = plots.panels([plots.Panel("p", series)])
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    told = re.findall(r"#[0-9a-f]{6}", plots.standalone(drawn))  # where no style sheet reaches
    assert set(told) == {*plots.CYCLE, plots.INK, plots.FAINT}


def test_colour_stands_channel_by_channel():
    colours = plots.image(np.stack([np.full((2, 2), v, np.float32) for v in (1.0, 0.5, 0.0)]))
    assert colours_of(colours)[0, 0].tolist() == [255, 127, 0, 255]


def broken(row: int, turn: int) -> Example:
    flat = np.zeros((1, 2, 2), np.float32)
    return Example(row, 7, 1, flat, flat + 0.1, f"attack {turn}", turn=turn)


@pytest.mark.parametrize("gain", [-0.1, 0.1])
def test_the_examples_that_decide_most_are_on_one_network_alone_and_hard_to_find(told, gain):
    told.stored |= {"verified": 0.5 + gain, "verified_twin": 0.5}
    robust = np.ones(80, bool)
    before = Side([broken(row, row) for row in (1, 2, 3, 9)], robust.copy())
    after = Side([broken(row, 10 - row) for row in (3, 4, 5, 6)], robust.copy())
    before.verified[[1, 2, 3, 9]] = False
    after.verified[[3, 4, 5, 6, 9]] = False  # 9 is wrong without an attack there
    told.sides = before, after
    lost, gained = [(1, 4), (1, 5), (1, 6)], [(0, 2), (0, 1)]
    rows = [(side, example.row) for side, example in deciding(told.sides, told.numbers().gain, 9)]
    assert rows[:5] == (lost + gained if gain < 0 else gained + lost)
    assert rows[5:] == ([(1, 3), (0, 9), (0, 3)] if gain < 0 else [(0, 9), (0, 3), (1, 3)])
    text = audited.page(told)
    assert text.count(": 7 → <span") == SHOWN and "not robust" not in text
    after.examples, before.examples = [], [broken(9, 0)]
    text = audited.page(told)
    assert (
        "image 9: 7 →" in text and "before the change, not robust after the change; moved" in text
    )


def test_what_every_attack_did_to_an_example_is_told(told):
    asked = [("a", 80), ("b", 79), ("c", 9), ("c again", 9), ("d", 78)]
    attacks = [AttackResult(t, t, "white box", n, 0, 0, 0, 0, 0.0) for t, n in asked]
    after = Side([broken(1, 0), broken(2, 1), broken(5, 4)], attacks=attacks)
    before = Side([], attacks=attacks[:2])
    before.clean[5] = False
    sides = before, after
    for side in sides:
        side.verified[[e.row for e in side.examples]] = False
    told.sides = sides
    shown = show("image", Case(told, after.examples[2], 1))
    (first, then) = shown.networks
    assert first.sums == "wrong without an attack" and first.fates == []
    assert shown.says == "after the change, wrong before the change without an attack"
    assert [f.result.split(":")[0] for f in then.fates] == [
        "withstood",
        "withstood",
        "not known",
        "not known",
        "broke it",
    ]
    assert then.sums == "broken by attack 5 of 5"
    (first, then) = show("image", Case(told, after.examples[0], 1)).networks
    assert [f.result.split(":")[0] for f in then.fates] == ["broke it"] + 4 * ["not asked"]
    assert first.sums == "withstands all: 2 attacks were tried on it"


@dataclass
class Walked:
    row: int
    usual: Any
    found: Any


def test_margins_along_the_attack_are_drawn_and_said(told):
    up, down = (3.0, 2.0, 1.0), (3.0, math.nan, -2.0)
    told.trails = [Walked(5, Pair(up, up), Pair(up, down))]
    text = audited.page(told)
    assert "The margin ends below 0 after the change on the way to what was found." in text
    assert text.count("<svg") == 5 and ">before the change, usual attack<" in text
    told.trails = [Walked(6, Pair(up, up), Pair(up, up))]
    assert "The margin ends" not in audited.page(told)


def test_the_floor_is_said_where_nothing_is_left(told):
    assert "Both networks are at the floor" not in audited.page(told)
    told.stored |= {"effect": "TOO STRONG A THREAT", "verified": 0.0, "verified_twin": 0.0125}
    text = audited.page(told)
    assert "of 80 images 1 withstand before the change and 0 after it" in text
    assert '<dt id="word-floor">' in text


def test_the_evidence_is_linked_from_the_page(told):
    text = audited.page(told, evidence="my evidence")
    for file in ("audit.json", "before.safetensors", "after.pt", "evidence.json"):
        assert f'href="my%20evidence/{file}"' in text
    assert "retroact verify" not in audited.page(told)


def test_doubts_and_what_was_not_masked_are_said(told):
    told.stored |= {
        "doubts": ["Square broke 9 of 10"],
        "effect": "ABSTAINED",
        "claim": "HONEST",
        "mechanism": "",
    }
    assert "Doubt: Square broke 9 of 10." in audited.page(told)
    assert "- Doubt: Square broke 9 of 10" in audited.markdown(told)
    assert "promises no more than what was verified" in audited.why(told.numbers())
    told.stored["indicators"] = [r | {"fired": False} for r in told.stored["indicators"]]
    assert audited.why(told.numbers()).startswith("No indicator fired")
    assert "jumps" in audited.why(numbers()) and "rounded flat" not in audited.why(numbers())


def test_markdown_holds_every_run_and_every_indicator(told):
    text = audited.markdown(told)
    assert "| verified | 25.0 % | 30.0 % | +5.0 |" in text
    assert "| gradient fidelity | jump | 0.475 | 0 | > before + 0.05 | fired |" in text
    assert "| APGD | `APGD(steps=7)` | white box | 80 | 40 | 560 | 1.2 |" in text
    assert "| FGSM |" in text and text.count("\n| --- |") == 4


def test_version_and_fingerprints_are_named_where_they_are_known(told):
    assert "SHA-256" not in audited.page(told)  # that of 0.1.0 had none
    prints = {"data": "d" * 16, "twin": "b" * 16, "network": "a" * 16}
    told.stored |= {"retroact": "9.8.7", "fingerprints": prints}
    said = (
        f"retroact 9.8.7; SHA-256, first 16 digits: data {'d' * 16}, weights before {'b' * 16},"
        f" weights after {'a' * 16}"
    )
    page = audited.page(told)
    assert said in page.split('id="run"')[1] and said in audited.markdown(told)
    assert f"UTC by retroact {ra.__version__}" in page
    told.stored["fingerprints"] = prints | {"twin": ""}
    assert "weights before" not in audited.markdown(told)


def test_what_alarms_asked_for_is_said_beside_the_attack(told):
    told.stored["attacks"]["network"][1] |= {"asked_by": "no gradient, equal logits"}
    assert "asked for by no gradient, equal logits" in audited.page(told)
    text = audited.markdown(told)
    assert "| 560 | 1.2 | no gradient, equal logits |" in text and "| 560 | 1.2 |  |" in text


def test_a_randomised_network_is_said_with_what_a_single_draw_is_worth(told):
    told.stored["pedigree"] |= {"draws": [0, 20], "single": [None, [0.325, 0.0105]]}
    said = "The network after draws at random: the mean of 20 draws was attacked; a single draw"
    for text in (audited.page(told), audited.markdown(told)):
        assert said in text and "32.5 ± 1.1 %" in text and "The network before draws" not in text
    told.stored["claim"] = "NOT SETTLED"
    told.stored["mechanism"] = ""
    assert audited.why(told.numbers()).endswith("which is in doubt.")


@pytest.mark.parametrize(("shape", "word"), [([1, 4, 4], "column"), ([30], "entry")])
def test_where_a_gradient_is_missing_is_drawn(told, shape, word):
    assert "gradient missing" not in audited.page(told)
    told.stored["curves"]["network"]["entries"] = {
        "shape": shape,
        "found": [1, 2, 3],
        "missing": [8, 9],
    }
    text = audited.page(told)
    assert text.count("Where is the gradient missing, after the change?") == 1
    assert "at 2 of 5 places that move the network after the change" in text
    assert text.count("<svg") == 5 and (f">{word}<" in text or f"<!-- {word} -->" in text)
    assert json.loads(audited.as_json(told))["curves"] == told.stored["curves"]


def test_json_is_strict_and_equal_to_the_numbers(told):
    told.stored["curves"]["network"] = {"loss": [0.5, math.inf], "fidelity": [], "margin": math.nan}
    read = json.loads(
        audited.as_json(told), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    assert read["curves"]["network"] == {"loss": [0.5, None], "fidelity": [], "margin": None}
    assert {k: v for k, v in read.items() if k != "curves"} == {
        k: v for k, v in told.stored.items() if k != "curves"
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("margin", [math.nan, math.inf, 0.0, 1e38])
def test_a_broken_network_still_gets_its_page(told, margin):
    broken = {"loss": [0.1, math.inf, math.nan], "fidelity": [], "margin": margin}
    told.stored["curves"]["network"] = broken
    text = audited.page(told)
    assert text.count("<svg") == 4 and text.count("<svg role=") == 4
    told.stored["curves"] = {}
    assert audited.page(told).count("<svg") == 1


def test_the_files_suffix_says_its_kind(told, tmp_path):
    assert report(told, tmp_path / "a.md").read_text().startswith("# retroact audit\n")
    assert json.loads(report(told, tmp_path / "a.JSON").read_text())["effect"] == "NO EFFECT"
    for name in ("a.pdf", "a"):
        with pytest.raises(ValueError, match=r"ends in one of: \.html, \.md, \.json"):
            report(told, tmp_path / name)
    with Store(tmp_path / "s.sqlite") as store:
        assert json.loads(report(store, tmp_path / "s.json").read_text()) == []
        with pytest.raises(ValueError, match=r"\.csv"):
            report(store, tmp_path / "s.pdf")
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.suffix != ".sqlite") == [
        ".JSON",
        ".json",
        ".md",
    ]


def test_a_real_audit_reports_itself(tmp_path):
    net = ra.load("digits-cnn")
    made = ra.audit(
        net,
        ra.retrofit(net, ra.JumpReLU(1.0)),
        ra.data("digits[:60]"),
        ra.Linf(0.1),
        battery="quick",
    )
    text = ra.report(made, tmp_path / "audit.html").read_text()
    found = json.loads(ra.report(made, tmp_path / "audit.json").read_text())
    counts = made.verdict.counts
    assert (found["claimed_twin"], found["claimed"]) == counts.claimed
    assert (found["verified_twin"], found["verified"]) == counts.verified
    assert [r["title"] for r in found["indicators"] if r["fired"]] == [r.title for r in made.alarms]
    assert all(r["about"] and r["source"] for r in found["indicators"])
    assert len(re.findall(PNG, text)) == 3 * SHOWN
    assert len({e.row for _, e in deciding(made.sides, made.numbers().gain)}) == len(made.trails)
    for trail in made.trails:  # all broke after the change alone
        assert trail.found.after[-1] < 1e-4 and trail.found.before[-1] > -1e-4
        assert trail.found.after[0] > 0 and len(trail.usual.before) == len(trail.found.after) == 41
    assert text.count("ends below 0 after the change on the way to what was found") == SHOWN
    lost = made.before.verified & ~made.after.verified
    turns = [made.after.broken_by[e.row] for side, e in deciding(made.sides, made.numbers().gain)]
    assert all(side == 1 and lost[e.row] for side, e in deciding(made.sides, made.numbers().gain))
    assert turns == sorted(turns, reverse=True) and turns[0] == made.after.broken_by[lost].max()
    for side in made.sides:
        assert all(f"<td>{run.title}<div" in text for run in side.attacks)
