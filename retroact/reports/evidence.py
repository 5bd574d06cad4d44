"""The folder of evidence of an audit: its page, its numbers and every image that fell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retroact.auditing.evidence import NUMBERS, keep
from retroact.auditing.numbers import Pair

if TYPE_CHECKING:
    from retroact.auditing.evidence import Audit, Origin

PAGE = "audit.html"


def write_evidence(
    audit: Audit,
    folder: str | Path,
    *,
    networks: Pair[Origin] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Writes the page, the JSON, and for each network every adversarial image, so that
    `verify(folder)` can judge them again.

    `before.safetensors` holds x_adv (k, …), row, label, decided and turn (k,), the attack's place
    among its metadata's `attacks`; `before.pt` one tensor (n, …), the clean image where none was
    found; `after` likewise; `evidence.json` how both networks are made again and the `commands`.
    `networks` say how to load both again, where the audit's own names do not. Returns the folder.
    Raises ValueError for an audit that kept no images, OSError as the file system does.
    """
    from retroact.reports import audited  # which draws

    texts = {PAGE: audited.page(audit, evidence="."), NUMBERS: audited.as_json(audit)}
    return keep(audit, folder, texts, networks=networks, commands=commands)
