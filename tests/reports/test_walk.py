"""The demo's lines and its page: one looked-like and one real number for each network, and nothing
that a phone or a reader without pictures would miss."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from html import unescape
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retroact.auditing.numbers import AttackResult, AuditNumbers, AuditPedigree, Fingerprints, Pair
from retroact.auditing.verdict import WORDS as CLAIMS
from retroact.crafting.domain import Domain
from retroact.reports import walk
from retroact.reports.fallen import Case
from retroact.reports.walk import Shown, fooled, legend, page, verdict


@dataclass
class Example:
    row: int
    turn: int
    label: int = 7
    decided: int = 1
    image: Any = None
    x_adv: Any = None
    by: str = "targeted <margin>"
    role: str = "white box"

    def __post_init__(self):
        self.image = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
        self.x_adv = np.clip(self.image + 0.1, 0, 1)


@dataclass
class Side:
    examples: list[Example]
    verified: Any = field(default_factory=lambda: np.ones(20, bool))
    clean: Any = field(default_factory=lambda: np.ones(20, bool))
    attacks: list[Any] = field(default_factory=list)

    @property
    def broken_by(self):
        turns = np.full(20, -1)
        for example in self.examples:
            turns[example.row] = example.turn
        return turns


@dataclass
class Examined:
    sides: tuple[Side, Side]
    trails: Any = ()
    domain: Domain = field(default_factory=lambda: Domain((1, 4, 4)))


def broken(row: int, turn: int, side: int, names: Pair[str]) -> Case:
    example = Example(row, turn)
    attacks = [AttackResult(f"attack {i}", "", "white box", 20, 0, 0, 0, 0, 0.5) for i in range(5)]
    sides = tuple(Side([example] if i == side else [], attacks=attacks) for i in (0, 1))
    return Case(Examined(sides), example, side, Pair(*(f"on {name}" for name in names)))


PEDIGREE = AuditPedigree(
    seed=0,
    left_alone={},
    forms=Pair("a", "b"),
    gradients_per_image=Pair(1.0, 2.0),
    seconds=Pair(1.0, 2.0),
    device="cpu",
    machine="m",
    versions="python 3, torch 2",
)


def numbers(really: int, looks: int, effect="INCONCLUSIVE", claim="HONEST", mechanism="", n=100):
    ran = AttackResult("APGD", "APGD(steps=10)", "white box", n, 3, 10, 0, 10, 0.5)
    return AuditNumbers(
        n=n,
        effect=effect,
        claim=claim,
        mechanism=mechanism,
        clean=Pair(0.99, 0.99),
        claimed=Pair(0.69, looks / n),
        verified=Pair(0.58, really / n),
        p=0.01,
        names=Pair("plain net", "changed net"),
        data="digits[:100]",
        threat="Linf(eps=0.1)",
        plainly="What it means, plainly.",
        gained=max(0, really - 58),
        lost=max(0, 58 - really),
        interval=(-0.05, 0.05),
        claimed_attack="PGD(steps=40)",
        battery="Battery(steps=10)",
        attacks=Pair((), (ran,)),  # of the plain one none
        pedigree=PEDIGREE,
    )


def networks(rho: float | None = None) -> list[Shown]:
    masked = {"claim": "MASKED, WEAK PROTOCOL", "mechanism": "saturation"}
    jump = {"effect": "HARMFUL", "claim": "MASKED", "mechanism": "jump"}
    sloped, jumping = Pair("plain", "SReLU(100)"), Pair("plain", "JumpReLU(0.4)")
    made = [
        Shown("plain", "As it was.", numbers(60, 99, **masked), 0, broken(1, 2, 0, sloped)),
        Shown("SReLU(100)", "Louder.", numbers(60, 99, **masked), 1, broken(2, 3, 1, sloped)),
        Shown("JumpReLU(0.4)", "It jumps.", numbers(44, 73, **jump), 1, broken(3, 4, 1, jumping)),
        Shown("hardened in 7 s", "<Trained>.", numbers(76, 86, effect="GENUINE"), 1, None),
    ]
    return [replace(one, rho=rho) for one in made]


def test_a_line_says_what_it_looks_like_what_it_is_and_what_the_audit_makes_of_it():
    assert [one.line for one in networks()] == [
        "plain: looks like 69, really 58",
        "SReLU(100): looks like 99, really 60 (masked by saturation)",
        "JumpReLU(0.4): looks like 73, really 44 (masked by jump), 14 fewer than plain",
        "hardened in 7 s: looks like 86, really 76, 18 more than plain, and that holds",
    ]
    assert all(len(one.line) <= 80 for one in networks())
    doubted = Shown("x", "", numbers(70, 71, effect="ABSTAINED"), 1)
    assert doubted.line.endswith("and that is in doubt") and "holds" not in doubted.line
    few = Shown("x", "", numbers(60, 71), 1)
    assert few.line.endswith("too few images to tell from plain")


def test_counts_are_of_the_images_and_not_per_cent():
    one = Shown("x", "", numbers(30, 45, n=50), 1)
    assert (one.looks, one.really) == (45, 30) and "Of 50 images" in legend(one.n)
    assert one.row()["really"] == "30 (46-72)" and "ρ₂ %" not in one.row()
    assert replace(one, rho=0.25).row()["ρ₂ %"] == "25.0"


def test_the_sentence_at_the_head_says_every_network():
    said = verdict(networks())
    assert said.startswith(
        "Under every attack of the audit the plain network still reads 58 of 100"
    )
    assert "SReLU(100) makes that look like 99; really it is 60." in said
    assert "Hardened in 7 s, it is 76, 18 more than plain, and that holds." in said


def shown_text(text: str) -> str:
    """What a reader sees of a page."""
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_has_every_network_once_in_picture_and_table():
    text = page(networks(), title="t <1>", intro="An intro.", commands=["retroact audit <x>"])
    picture, rest = text.split('id="why"')
    table = rest.split('id="numbers"')[1].split("</table>")[0]
    for one in networks():
        assert (
            picture.count(f"<h3>{one.name}</h3>") == 1 and table.count(f"<td>{one.name}</td>") == 1
        )
        assert f'aria-label="really {one.really} of 100, 95 % interval' in picture
        assert f"<b>{one.really}</b>" in table
    assert "&lt;Trained&gt;" in text and "<Trained>" not in text
    assert "retroact audit &lt;x&gt;" in text and "An intro." in text


def test_the_page_stands_on_its_own_and_says_its_pictures_in_words():
    text = page(networks(), title="t", intro="i")
    assert not re.search(
        r"<script [^>]*src|<(link|iframe)|(src|href)=.(?!data:|#)|@import|url\(", text
    )
    said = re.findall(r'<img alt="([^"]*)"', text)
    assert len(said) == 3 * 3 and all(len(words) > 10 for words in said)
    assert Counter(said).most_common(1)[0][1] == 1, "two pictures that say the same"
    assert "decided as 1" in said[1] and text.count('role="img"') == 2 * 4


def test_a_card_says_what_every_attack_did_on_both_networks():
    text = page(networks(), title="t", intro="i")
    cards = {f"image-{row}": card for row, card in zip((1, 2, 3), _cards(text), strict=True)}
    assert all(card.startswith(f'id="{name}"') for name, card in cards.items())
    assert "7 → 1 on SReLU(100), robust on plain" in shown_text(cards["image-2"])
    assert "on SReLU(100): broken by attack 4 of 5" in shown_text(cards["image-2"])
    fates = re.findall(r"<li[^>]*><b>(.*?)</b>", cards["image-3"])
    assert fates == [*["withstood"] * 5, *["withstood"] * 4, "broke it"]


def _cards(text: str) -> list[str]:
    return text.split('<details class="example" ')[1:]


def test_words_that_the_page_uses_are_explained_and_no_others():
    plain, measured = (page(networks(rho), title="t", intro="i") for rho in (None, 0.2))
    assert "ρ₂" not in plain and ">ρ₂</dt>" in measured
    for text in (plain, measured):
        body, words = text.split('<dl class="words">')
        explained = re.findall(r"<dt[^>]*>(.*?)</dt>", words)
        assert len(explained) > 5
        for term in set(explained) - {"threat model", "clean accuracy"}:  # here by their values
            assert term.split()[0].lower() in shown_text(body).lower(), term


def test_each_network_shows_another_image_and_the_last_attack_that_broke_one():
    taken: set[int] = set()
    side, names = Side([Example(4, 1), Example(9, 3), Example(2, 3)]), Pair("plain", "b")
    audit = Examined((side, Side([])))
    assert [fooled(audit, 0, names, taken).found.row for _ in range(3)] == [2, 9, 4]
    assert fooled(audit, 0, names, taken).found.row == 2 and taken == {2, 4, 9}
    assert fooled(audit, 1, names, taken) is None
    followed = replace(audit, trails=[SimpleNamespace(row=9)])
    assert fooled(followed, 0, names, set()).found.row == 9


def test_every_effect_and_mechanism_has_words():
    from typing import get_args

    from retroact.auditing.verdict import Effect, Mechanism

    for effect in get_args(Effect):
        assert Shown("x", "", numbers(58, 58, effect=effect), 1).line
    for mechanism in get_args(Mechanism):
        one = Shown("x", "", numbers(58, 90, claim="MASKED", mechanism=mechanism), 1)
        assert one.why and f"masked by {mechanism}" in one.line
    assert CLAIMS["MASKED"] == ("MASKED",)


def test_headings_are_links_and_numbers_sort():
    text = page(networks(), title="t", intro="i")
    for name in ("networks", "why", "examples", "numbers", "run"):
        assert f'href="#{name}"' in text
    numbers_of = text.split('id="numbers"')[1].split("</table>")[0]
    assert 'class="narrow sortable cards"' in numbers_of
    assert numbers_of.count('data-label="beside plain"') == 4  # its head on a phone


def test_the_page_names_version_and_fingerprints():
    def weigh(one, digit):
        prints = Fingerprints("d" * 16, Pair("b" * 16, digit * 16))
        return replace(one, numbers=replace(one.numbers, retroact="9.8.7", fingerprints=prints))

    made = [weigh(one, f"{turn}") for turn, one in enumerate(networks())]
    run = page(made, title="t", intro="i").split('id="run"')[1]
    assert "Run by retroact 9.8.7" in run and f"data {'d' * 16}" in run
    assert f"weights of plain {'b' * 16}, weights of SReLU(100) {'1' * 16}" in run


def test_no_networks_are_no_page():
    with pytest.raises(ValueError, match="at least one network"):
        walk.page([], title="t", intro="i")
