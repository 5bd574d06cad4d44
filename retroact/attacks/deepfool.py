"""DeepFool: step to the nearest boundary of the linearised network, until the decision changes.

At x, with gaps g_j = f_y − f_j and slopes w_j = ∇(f_j − f_y), the nearest linearised boundary is that of
l = argmin_j g_j / ‖w_j‖_q; r ← r + (g_l / ‖w_l‖_q) · s(w_l) and x ← clip(x_0 + (1 + overshoot) r).

Two things make it cheap. Examples leave as soon as they are beaten. And not every class is asked for
its slope: classes are ranked by g_j over the length that their slope had when it was last seen, and
those that seem farther than `_HOPELESS` times the best are not asked at all.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.attacks.geometry import dual_norm, each, inward, steepest
from retroact.attacks.goals import Aim
from retroact.attacks.oracle import Oracle
from retroact.attacks.smallest import Smallest
from retroact.attacks.threat import Access, Norm, ThreatModel
from retroact.spec import AtLeast0, Count, Within, spec

_HOPELESS = 1.5  # a class that seems this much farther than the best is not asked for its slope
