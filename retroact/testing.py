"""testing: the audit as an assertion, for the tests of whoever changes a network.

from retroact.testing import assert_not_weaker

def test_the_pruned_network_is_no_weaker():
    assert_not_weaker("digits-cnn", "pruned.safetensors", "digits", "Linf(0.1)", margin=0.05)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retroact.auditing.verdict import MARGIN

if TYPE_CHECKING:
    from retroact.activations.activation import Activation
    from retroact.auditing.audit import Audit
    from retroact.crafting.threat import ThreatModel
    from retroact.reading import Data, Net, Said
    from retroact.retrofitting.surgery import Retrofit


def assert_not_weaker(
    before: Net,
    after: Net | Said[Activation] | Retrofit,
    data: Data,
    threat: Said[ThreatModel],
    *,
    margin: float = MARGIN,
    **how: Any,
) -> Audit:
    """Asserts that `after` loses less than `margin` of verified accuracy beside `before`.

    Non-inferiority, as `audit --require not-weaker` means it: the lower end of the 95 % interval of
    V1 − V0 lies above −`margin`, the effect is settled, and nothing is in doubt. All else fails: a
    doubt, a floor, too few examples, and whatever kept the audit from a verdict, a skipped test
    among them. `how` is what `audit` takes, such as `battery`, `baseline`, `budget`, `rejected`
    (under "both" both must hold). Returns the audit. Raises AssertionError with the verdict.
    """
    __tracebackhide__ = True  # pytest shows the line of the test instead
    made = _audit(before, after, data, threat, margin=margin, **how)
    for one in (made, made.also):
        if one is not None and one.verdict.compare(margin) != "NOT WEAKER":
            raise AssertionError(_explain(one, margin))
    return made


def _audit(*asked: Any, **how: Any) -> Audit:
    """The audit; what keeps it from a verdict is a failure, whatever class it is of."""
    from retroact.auditing.audit import audit

    __tracebackhide__ = True
    try:
        return audit(*asked, **how)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a network that leaves, or skips the test, has shown nothing
        said = f"{type(error).__name__}: {error}"
        raise AssertionError(f"NOT SETTLED: the audit came to no verdict: {said}") from error


def _explain(made: Audit, margin: float) -> str:
    before, after = made.names
    return (
        f"{made.verdict.explain_comparison(margin)}\n{after} beside {before}, {made.threat} on"
        f" {made.data}\n{made.verdict}"
    )
