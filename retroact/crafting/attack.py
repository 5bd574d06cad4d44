"""What an attack is: a spec that takes a scene and returns adversarial examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access, ThreatModel

CHUNK = 64  # small chunks stay in a CPU's caches: 1.3-1.4 times faster than one large batch


@runtime_checkable
class Attack(Protocol):
    """A spec that turns clean examples into adversarial ones: `attack(scene) -> x_adv`.

    What every attack says: `norms` (the names of those it serves, or EVERY_NORM), `needs` (the
    access it needs), `kind` ("budget": the best within eps, or "minimum-norm": the smallest
    perturbation), `paper` (where it comes from) and `passes` (how many gradients an example costs
    at most). What it may say: see below.
    """

    norms: ClassVar[tuple[str, ...]]
    needs: ClassVar[Access]
    kind: ClassVar[str]
    paper: ClassVar[str]
    chunk: ClassVar[int] = CHUNK
    """How many examples it likes to see at once."""
    starts_clean: ClassVar[bool] = False
    """Its first gradient is at the clean examples themselves, so that it costs a backward pass
    only."""
    shares_radii: ClassVar[bool] = False
    """`sweep` serves several radii for the price of one. A minimum-norm attack always does."""

    streams: ClassVar[bool] = False
    """Examples leave it one by one, and it asks for one gradient at a point: more of them than the
    network is asked about at once may run together, so that its batches stay full for longer."""

    @property
    @abstractmethod
    def passes(self) -> int: ...

    @property
    def serves_several(self) -> bool:
        """Whether one run of the attack serves several radii."""
        return self.shares_radii or self.kind == "minimum-norm"

    @abstractmethod
    def __call__(self, scene: Scene) -> Tensor:
        """Adversarial examples, shaped as `scene.x` (n, …), in the box and, for a budget attack, in
        the ball.

        A minimum-norm attack returns the smallest perturbation it finds in the threat's norm; the
        driver puts those beyond eps back to the clean example, so one run serves every eps.
        """
        ...

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """`attack(scene)` for each of several radii; here one after the other."""
        return [self(scene.under(threat)) for threat in threats]
