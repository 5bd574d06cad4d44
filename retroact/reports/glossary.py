"""What the words on a page mean, in the field's words: each page ends in those that it uses."""

from __future__ import annotations

_WORDS = {
    "clean accuracy": "The share of examples that a network decides rightly without an attack.",
    "claimed accuracy": (
        "The share that is decided rightly under the attack that the claim rests on; without"
        " another word PGD on the cross-entropy, the attack of most papers."
    ),
    "verified accuracy": (
        "The share that no attack of the battery broke, example by example: the robust accuracy"
        " under an adaptive attack. An upper bound on what the network withstands, never a"
        " certificate."
    ),
    "looks like": "The claimed accuracy, in the words of the demo.",
    "really": "The verified accuracy, in the words of the demo.",
    "worst case": (
        "An example counts as robust only if every attack that is listed leaves it decided rightly."
    ),
    "threat model": (
        "How far an attack may move an example, such as Linf(eps=0.1): no entry by more than eps."
        " For an image it is in pixels of [0, 1], so 8/255 is 8 grey levels of 255."
    ),
    "95 % interval": (
        "Of an accuracy: Wilson's, of the examples as a sample. Of a difference: the bootstrap's,"
        " of the pairs before and after. It knows nothing of attacks that were not run."
    ),
    "before, after": (
        "The network before the change that is audited, and after it. Both are attacked alike, on"
        " the same examples."
    ),
    "retrofit": "A change of a trained network's activations that leaves its weights as they are.",
    "white box": "The attack knows the network, its weights and what was changed.",
    "gray box": "The attack climbs another network's gradients and asks this one for decisions.",
    "black box": "The attack sees scores or decisions alone.",
    "adaptive attack": "An attack that is made for the defence that it attacks.",
    "control": (
        "An attack that should be weaker than the others. Where it breaks what they left, they were"
        " blind."
    ),
    "margin": (
        "The score of the true class less the best of the others, z_y − max z_j: positive where the"
        " decision is right. The margin loss is its negative."
    ),
    "PGD": (
        "Projected gradient descent: steps along the sign of the loss's gradient, back into the"
        " ball after each (Madry et al. 2017)."
    ),
    "APGD": "PGD that chooses its own steps and goes back to the best point (Croce & Hein 2020).",
    "masked": (
        "The claimed attack was blinded, so its number is too high: gradient masking, or obfuscated"
        " gradients (Athalye et al. 2018). Behind it is a mechanism, such as saturation or a jump."
    ),
    "weak protocol": (
        "The claimed attack overestimates the network before the change too, so the change is not"
        " what misled it."
    ),
    "honest": "The claimed attack and all others agree, on both networks, within the margin.",
    "saturation": (
        "Scores so large that softmax is rounded to 0 and 1, where the cross-entropy has no"
        " gradient."
    ),
    "jump": "A step in an activation. Its gradient does not see it.",
    "kernel": (
        "A smooth slope in the place of a jump, in the backward pass alone (BPDA, Athalye et al."
        " 2018)."
    ),
    "beyond the truth": (
        "What the claim promises beyond the truth, in points: the claimed gain less the verified"
        " one."
    ),
    "indicator": "A few gradient passes that ask why an attack may fail; it fires or is silent.",
    "McNemar's p": (
        "How likely so uneven a count of gained and lost examples is if the change did nothing;"
        " exact, two-sided."
    ),
    "floor": (
        "Hardly any example is robust on either network (3 of n or fewer). Both may be as weak as"
        " can be, so their difference says nothing: the radius is too large to compare them."
    ),
    "genuine": "More examples withstand after the change, more than chance explains.",
    "harmful": "Fewer examples withstand after the change, more than chance explains.",
    "no effect": "The difference lies within the margin that matters, 5 points by default.",
    "inconclusive": "So few examples do not tell.",
    "abstained": "There is a reason to doubt the numbers; it stands beside them.",
    "too strong a threat": "Both networks are at the floor.",
    "ρ₂": (
        "The mean size of the perturbations that fooled, ‖x_adv − x‖₂ over ‖x‖₂ (Moosavi-Dezfooli"
        " et al. 2016): larger is harder to fool, if the attack was no weaker."
    ),
    "zero gradients": (
        "The share of gradients that were exactly zero. An attack that meets many was blind."
    ),
    "box": "What the attacker knows: white, gray or black.",
    "queries": "Forward passes per example.",
}


def glossary(*terms: str) -> dict[str, str]:
    """These terms with what they mean, from A to Z. Raises KeyError for one that is not here."""
    return {term: _WORDS[term] for term in sorted(terms, key=str.lower)}
