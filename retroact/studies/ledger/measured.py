"""What the ledger's page was measured with, where that is not what stands here now: nothing yet."""

from __future__ import annotations

from retroact.studies.earlier import Earlier

EARLIER = Earlier()
