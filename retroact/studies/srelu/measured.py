"""What docs/studies/srelu.md was measured with, where that is not what stands here now."""

from __future__ import annotations

from retroact.studies.earlier import Earlier
from retroact.studies.srelu.question_defences import HardenedAudit, RaisedBias
from retroact.studies.truth import Audited

EARLIER = Earlier(measurements={Audited: 1, HardenedAudit: 1, RaisedBias: 1})
