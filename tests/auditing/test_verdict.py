"""The verdict's arithmetic: p, interval, effects, claims, and the n that would settle it."""

import math

import numpy as np
import pytest

from retroact.auditing.verdict import Counts, bootstrap, count, holm, judge, mcnemar, settling


def counts(
    n: int,
    gained: int,
    lost: int,
    base: int | None = None,
    claimed: tuple[float, float] | None = None,
) -> Counts:
    """Of n examples `base` are robust on both networks (10 where there are so many), `gained` after
    the change alone, `lost` before it alone; an honest claim."""
    base = min(10, n - gained - lost) if base is None else base
    verified = (base + lost) / n, (base + gained) / n
    return Counts(n, (1.0, 1.0), verified if claimed is None else claimed, verified, gained, lost)


# --------------------------------------------------------------------------------------------- p


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (8, 2, 0.109375),
        (4, 4, 1.0),
        (2, 12, 0.012939453125),
    ],
)
def test_mcnemar_known_values(gained, lost, p):
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == p


def test_mcnemar_agrees_with_the_binomial_and_serves_large_and_numpy_counts():
    heads = np.random.default_rng(0).binomial(40, 0.5, size=200_000)
    assert mcnemar(28, 12) == pytest.approx(np.mean((heads <= 12) | (heads >= 28)), abs=0.002)
    assert 0 < mcnemar(3000, 2000) < 1e-40
    assert mcnemar(np.int64(250), np.int64(50)) == mcnemar(250, 50) < 1e-30
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar(-1, 3)


# -------------------------------------------------------------------------------------- interval


@pytest.mark.parametrize("n", [60, 200, 1000])
@pytest.mark.parametrize(
    ("gains", "loses"), [(0.01, 0.01), (0.02, 0.01), (0.05, 0.02), (0.1, 0.1), (0.2, 0.05)]
)
def test_the_interval_covers_the_truth(n, gains, loses):
    found = np.random.default_rng(1).multinomial(n, [gains, loses, 1 - gains - loses], size=600)
    spans = {(g, b): bootstrap(g, b, n, draws=2000) for g, b, _ in map(tuple, found.tolist())}
    covered = np.mean(
        [spans[g, b][0] <= gains - loses <= spans[g, b][1] for g, b, _ in found.tolist()]
    )
    assert covered >= 0.92  # 95 % less 3.4 standard errors of 600 samples


def test_the_interval_is_symmetric_and_fixed():
    low, high = bootstrap(12, 4, 200)
    assert (low, high) == bootstrap(12, 4, 200) and low < 8 / 200 < high
    mirrored = bootstrap(4, 12, 200)
    # one example of 200 is a step of 0.005
    assert mirrored == pytest.approx((-high, -low), abs=0.006)


def test_the_interval_at_the_extremes():
    for n in (60, 200, 1000):
        low, high = bootstrap(0, 0, n)
        # the rule of three: 3/n
        assert -low == pytest.approx(high, abs=1.01 / n) and 1.5 / n < high < 3.5 / n
        low, high = bootstrap(n, 0, n)
        # up to three lost, each of which counts twice
        assert high == 1.0 and 1 - 6 / n <= low < 1.0
        low, high = bootstrap(0, n, n)
        assert low == -1.0 and -1.0 < high <= -1 + 6 / n


def test_the_interval_contains_what_was_seen():
    for gained, lost in [(0, 0), (1, 0), (30, 0), (20, 20), (60, 0), (35, 25)]:
        low, high = bootstrap(gained, lost, 60)
        assert low <= (gained - lost) / 60 <= high


@pytest.mark.parametrize("n", [60, 200, 1000])
def test_the_interval_does_not_contradict_the_p_value(n):
    for gained in range(24):
        for lost in range(0, gained, 2):
            p, low = mcnemar(gained, lost), bootstrap(gained, lost, n)[0]
            assert p < 0.07 or low <= 0, (gained, lost)
            assert p > 0.03 or low > 0, (gained, lost)


@pytest.mark.parametrize("bad", [(1, 1, 0), (-1, 0, 5), (0, -1, 5), (4, 2, 5)])
def test_the_interval_refuses_what_cannot_be_counts(bad):
    with pytest.raises(ValueError, match="gained"):
        bootstrap(*bad)


# --------------------------------------------------------------------------------------- effects


@pytest.mark.parametrize(
    ("n", "gained", "lost", "effect"),
    [
        (300, 40, 5, "GENUINE"),
        (100, 100, 0, "GENUINE"),
        (300, 5, 40, "HARMFUL"),
        (300, 0, 0, "NO EFFECT"),
        (1000, 12, 12, "NO EFFECT"),
        (200, 4, 0, "NO EFFECT"),  # four more of 200 prove nothing, p = 0.125
        (300, 40, 40, "INCONCLUSIVE"),
        (30, 0, 0, "INCONCLUSIVE"),  # too few to see a change of five points
        (30, 4, 0, "INCONCLUSIVE"),
    ],
)
def test_each_effect_is_reached(n, gained, lost, effect):
    verdict = judge(counts(n, gained, lost), [])
    assert verdict.effect == effect
    assert (verdict.needs > n) == (effect == "INCONCLUSIVE") and (verdict.needs == 0) == (
        effect != "INCONCLUSIVE"
    )
    assert str(verdict).startswith(f"{effect}; ") and f"n = {n})" in str(verdict)
    assert ("would settle it" in str(verdict)) == (effect == "INCONCLUSIVE")
    if effect == "INCONCLUSIVE":
        assert f"n = {verdict.needs}" in str(verdict) and str(verdict.needs) in verdict.plainly()


@pytest.mark.parametrize("margin", [0.0, -0.05, 1.0, math.nan])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(ValueError, match="margin in"):
        judge(counts(300, 0, 0), [], margin=margin)


def test_any_doubt_makes_it_abstain_and_is_said():
    for gained, lost in [(40, 5), (0, 0), (40, 40)]:
        verdict = judge(
            counts(300, gained, lost), [], ["Square broke 9 of 64", "2 of 32 are robust at any eps"]
        )
        assert verdict.effect == "ABSTAINED" and verdict.needs == 0
        assert "Square broke 9 of 64; 2 of 32 are robust at any eps" in str(verdict)
        assert verdict.plainly().startswith("No verdict")


def test_harm_stands_whatever_the_attacks_missed():
    verdict = judge(counts(300, 5, 40), [], ["Square broke 9 of 64"])
    assert verdict.effect == "HARMFUL" and "Square broke 9 of 64" in str(verdict)


def test_a_doubt_about_the_network_before_spares_only_a_gain():
    doubt = ["Square broke 9 of 64"]
    assert judge(counts(300, 40, 5), [], doubts_before=doubt).effect == "GENUINE"
    for gained, lost in [(5, 40), (0, 0), (40, 40)]:
        verdict = judge(counts(300, gained, lost), [], doubts_before=doubt)
        assert verdict.effect == "ABSTAINED" and doubt[0] in str(verdict)


@pytest.mark.parametrize(("robust", "floor"), [((0, 0), True), ((3, 2), True), ((4, 0), False)])
def test_where_hardly_anything_is_robust_the_threat_is_too_strong(robust, floor):
    before, after = robust
    base = min(robust)
    some = counts(200, after - base, before - base, base)
    verdict = judge(some, [], tells="Linf(0.02)")
    assert (verdict.effect == "TOO STRONG A THREAT") == floor
    if floor:
        assert "Linf(0.02) would tell" in str(verdict)
        assert verdict.plainly("row").startswith("Nearly every row falls on both")


def test_a_gain_that_chance_explains_is_not_genuine():
    some = counts(30, 6, 0)
    assert some.p < 0.05 and judge(some, []).effect == "GENUINE"
    few = counts(100, 5, 0)
    assert few.p > 0.05 and judge(few, []).effect != "GENUINE"


def test_a_first_look_asks_more_of_a_gain_as_more_attacks_would_take_some_of_it():
    marginal = counts(150, 15, 5)
    assert 0.01 < marginal.p < 0.05 and judge(marginal, []).effect == "GENUINE"
    assert judge(marginal, [], first_look=True).effect == "INCONCLUSIVE"
    assert judge(marginal, [], first_look=True).needs > judge(marginal, []).counts.n
    assert judge(counts(150, 18, 3), [], first_look=True).effect == "GENUINE"


def test_what_a_change_costs_where_nobody_attacks_is_said():
    some = counts(300, 40, 5)
    assert "clean" not in str(judge(some, []))
    costly = Counts(300, (0.55, 0.49), some.claimed, some.verified, 40, 5)
    assert "clean 55.0 -> 49.0 %" in str(judge(costly, []))
    assert "first look" in str(judge(some, [], first_look=True))


def test_questions_that_are_asked_together_are_corrected_together():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.04]) == [0.04] and holm([]) == []


def test_the_margin_is_the_users():
    some = counts(300, 5, 4)
    assert judge(some, []).effect == "NO EFFECT"
    assert judge(some, [], margin=0.01).effect == "INCONCLUSIVE"
    assert judge(counts(300, 20, 20), [], margin=0.1).effect == "NO EFFECT"
    assert judge(counts(300, 5, 5, claimed=(0.02, 0.1)), ["jump"], margin=0.1).claim == "HONEST"


@pytest.mark.parametrize("margin", [0.05, 0.02])
def test_settling_names_an_n_that_settles(margin):
    shapes = [
        (n, g, b)
        for n in (30, 60, 300)
        for g in range(0, 31, 6)
        for b in range(0, 31, 7)
        if g + b <= n
    ]
    open_ones = [
        c
        for c in (counts(*shape) for shape in shapes)
        if judge(c, [], margin=margin).effect == "INCONCLUSIVE"
    ]
    assert len(open_ones) > 20
    for c in open_ones:
        n = settling(c, margin)
        assert n == float(f"{n:.1e}")  # two digits, for it is an estimate
        whole = math.ceil(n / c.n)  # the same shares of it without rounding
        grown = counts(whole * c.n, whole * c.gained, whole * c.lost)
        assert judge(grown, [], margin=margin).effect != "INCONCLUSIVE", (c, n)


def test_settling_is_no_larger_than_it_must():
    for gained, lost, n in [(40, 40, 300), (40, 40, 200), (12, 4, 100), (28, 20, 150)]:
        c = counts(n, gained, lost)
        half = settling(c) // 2
        shrunk = counts(half, round(gained * half / n), round(lost * half / n))
        assert judge(c, []).effect == judge(shrunk, []).effect == "INCONCLUSIVE", (c, half)


# ---------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("claimed", "alarms", "claim", "mechanism"),
    [
        ((0.40, 0.40), [], "HONEST", ""),
        ((0.40, 0.40), ["jump"], "HONEST", ""),  # an alarm without a mirage masks nothing
        ((0.44, 0.48), ["jump"], "HONEST", ""),  # 4 points are within the margin
        ((0.40, 0.60), ["saturation", "saturation"], "MASKED", "saturation"),
        ((0.40, 0.60), ["jump"], "MASKED", "jump"),
        ((0.40, 0.60), ["saturation", "jump", "jump"], "MASKED", "saturation and jump"),
        ((0.40, 0.60), [], "WEAK PROTOCOL", ""),  # a mirage that no alarm explains
        ((0.60, 0.60), [], "WEAK PROTOCOL", ""),
        ((0.60, 0.60), ["jump"], "WEAK PROTOCOL", ""),
        ((0.60, 0.80), ["jump"], "MASKED, WEAK PROTOCOL", "jump"),
        ((0.60, 0.40), ["jump"], "WEAK PROTOCOL", ""),
    ],
)
def test_each_claim_is_reached(claimed, alarms, claim, mechanism):
    made = Counts(300, (0.99, 0.99), claimed, (0.4, 0.4), 0, 0)
    verdict = judge(made, alarms)
    assert (verdict.claim, verdict.mechanism, verdict.effect) == (claim, mechanism, "NO EFFECT")
    said, plain = str(verdict), verdict.plainly()
    assert ("HONEST" in said) == (claim == "HONEST") and ("(WEAK PROTOCOL)" in said) == (
        claim == "WEAK PROTOCOL"
    )
    assert ("weak before the change too" in said) == (claim == "MASKED, WEAK PROTOCOL")
    assert (f"MASKED by {mechanism}" in said) == ("MASKED" in claim)
    assert ("blinds it" in plain) == ("MASKED" in claim)
    assert ("too weak on both" in plain) == (claim == "WEAK PROTOCOL")
    assert f"{100 * claimed[1]:.1f} %" in plain and "40.0 %" in plain


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ((None, None), ""),
        ((0.0, 0.0123), "; twice the steps move before by 0.0 and after by 1.2 points"),
        ((None, 0.02), "; twice the steps move after by 2.0 points"),
    ],
)
def test_it_says_how_far_each_side_still_moves(moved, said):
    sentence = str(judge(counts(300, 5, 5), [], moved=moved))
    assert said in sentence and ("twice the steps" in sentence) == bool(said)


@pytest.mark.parametrize("side", ["doubts", "doubts_before"])
@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (60, 5), (5, 60)])
def test_no_claim_is_honest_where_what_was_verified_is_in_doubt(side, gained, lost):
    made = counts(300, gained, lost, base=100)
    doubted = judge(made, [], **{side: ["blind"]})
    assert judge(made, []).claim == "HONEST" and doubted.claim == "NOT SETTLED"
    assert "HONEST" not in str(doubted) and "may have missed as much" in doubted.plainly()
    assert judge(made, []).doubt("its mean moves").claim == "NOT SETTLED"


def test_effect_and_claim_are_independent():
    found = set()
    for gained, lost in [(60, 5), (5, 60), (0, 0)]:
        for more in (0.0, 0.3):
            base = counts(300, gained, lost, base=100)
            c = Counts(
                300,
                (1, 1),
                (base.verified[0], base.verified[1] + more),
                base.verified,
                gained,
                lost,
            )
            verdict = judge(c, ["jump"])
            found.add((verdict.effect, verdict.claim))
    assert found == {
        (e, c) for e in ("GENUINE", "HARMFUL", "NO EFFECT") for c in ("HONEST", "MASKED")
    }


def test_the_sentences_carry_the_numbers():
    verdict = judge(counts(300, 6, 36, base=120, claimed=(0.8, 0.9)), ["jump"])
    assert str(verdict).startswith(
        "HARMFUL; its claim is MASKED by jump, and the claimed attack is weak before the change"
        " too: claimed +10.0, verified -10.0 points ["
    )
    assert f"p = {verdict.counts.p:.2g}, n = 300" in str(verdict)
    plain = verdict.plainly()
    assert "easier to fool: 42.0 % of the images withstand every attack, 52.0 % before." in plain
    assert "90.0 % against 80.0 %" in plain


# ---------------------------------------------------------------------------------------- counts


def test_count_counts_example_by_example():
    v0, v1 = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    every = np.ones(5, bool)
    c = count((every, every), (every, ~v0), (v0, v1))
    assert (c.n, c.gained, c.lost) == (5, 1, 2)
    assert c.verified == (0.6, 0.4) and c.claimed == (1.0, 0.4) and c.clean == (1.0, 1.0)
    assert c.verified_gain == pytest.approx(-0.2) and c.claimed_gain == pytest.approx(-0.6)
    assert c.mirage == pytest.approx(-0.4) and c.overestimate == pytest.approx(0.4)
    assert c.p == 1.0 and not math.isnan(sum(c.interval))


def test_count_refuses_other_examples_and_none():
    five, four, none = (np.ones(k, bool) for k in (5, 4, 0))
    with pytest.raises(ValueError, match="same examples"):
        count((five, five), (five, five), (five, four))
    with pytest.raises(ValueError, match="at least one"):
        count((none, none), (none, none), (none, none))
