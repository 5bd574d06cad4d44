"""Pairs whose answer is known: a network beside itself or one of another seed, and one that was
hardened."""

from __future__ import annotations

from retroact.auditing.mechanisms.mechanism import (
    Given,
    Made,
    Mechanism,
    Rewritten,
    harden,
)


def _plain(given: Given) -> Made:
    return Made(given.net, (given.net,))


def _rewritten(given: Given) -> Made:
    net = Rewritten(given.net)
    return Made(net, (net,))


PLAIN = (
    Mechanism("nothing but another seed, or itself", "controls", _plain, fast=True),
    Mechanism("written down anew", "controls", _rewritten),
)


def _hardened(given: Given) -> Made:
    net = harden(given).net
    return Made(net, (net,))


HARDENED = Mechanism("hardened by FGSM", "controls", _hardened)
