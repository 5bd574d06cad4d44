"""Crafting in bfloat16: gradients alone are rounded, whatever is decided is the network's own."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import retroact as ra
from retroact.crafting.oracle import Oracle
from retroact.experiments.cell import Cell
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store
from retroact.spec import SpecError, key, parse, show


@pytest.fixture(scope="module")
def net() -> Any:
    return ra.load("digits-cnn")


@pytest.fixture(scope="module")
def digits() -> Any:
    return ra.data("digits[:40]")


def first_logits(logits: Tensor) -> Tensor:
    return logits[:, 0] - logits[:, 1]


def asked(net: Any, x: Tensor, **how: Any) -> tuple[Oracle, Tensor, Tensor]:
    oracle = Oracle(net, len(x), **how)
    logits, gradient = oracle.gradient(x, torch.arange(len(x)), first_logits)
    return oracle, logits, gradient


def test_an_oracle_shows_the_logits_of_float32_and_gradients_of_autocast(
    net: Any, digits: Any
) -> None:
    x = digits.images
    own, logits, exact = asked(net, x)
    low, shown, gradient = asked(net, x, crafting="bfloat16")
    assert torch.equal(shown, logits)
    assert torch.equal(low.queries, own.queries) and torch.equal(low.gradients, own.gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(first_logits(net(leaf).float()).sum(), leaf)
    assert torch.equal(gradient, expected) and not torch.equal(gradient, exact)
    assert torch.cosine_similarity(gradient.flatten(1), exact.flatten(1)).min() > 0.98


def test_a_look_that_serves_a_gradient_shows_the_same(net: Any, digits: Any) -> None:
    x, rows = digits.images, torch.arange(len(digits))
    oracle = Oracle(net, len(x), crafting="bfloat16")
    logits = oracle.look(x, for_gradient=True)
    inner = oracle.narrowed(rows[5:], part := x[5:])
    seen, gradient = inner.gradient(part, rows[: len(part)], first_logits)
    _, exact, expected = asked(net, x, crafting="bfloat16")
    assert torch.equal(logits, exact) and torch.equal(seen, exact[5:])
    torch.testing.assert_close(gradient, expected[5:], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("attack", ["PGD(steps=10)", "APGD(steps=10)", "DeepFool()"])
def test_what_is_made_is_judged_by_the_network_in_float32(
    net: Any, digits: Any, attack: str
) -> None:
    threat = ra.L2(1.0) if attack == "DeepFool()" else ra.Linf(0.1)
    plain = ra.evaluate(net, digits, attack, threat, keep=40)
    low = ra.evaluate(net, digits, attack, threat, keep=40, crafting="bfloat16")
    with torch.no_grad():
        decided = net(torch.from_numpy(low.examples)).argmax(1)
    assert (low.adversarial == decided.numpy()).all()
    assert (low.examples != plain.examples).any()  # other gradients were climbed
    assert abs(ra.robust_accuracy(low) - ra.robust_accuracy(plain)) <= 0.05
    assert low.pedigree["crafting"] == "bfloat16" and "crafting" not in plain.pedigree


def test_an_attack_without_gradients_is_the_same(net: Any, digits: Any) -> None:
    run = (net, digits, "Square(queries=30)", "Linf(0.1)")
    assert ra.evaluate(*run, crafting="bfloat16") == ra.evaluate(*run)


def test_a_source_gives_gradients_in_bfloat16_too(net: Any, digits: Any) -> None:
    run, source = (net, digits, "PGD(steps=5)", "Linf(0.1)"), ra.retrofit(net, ra.SReLU(2.0))
    plain = ra.evaluate(*run, source=source, keep=40)
    low = ra.evaluate(*run, source=source, keep=40, crafting="bfloat16")
    assert (low.examples != plain.examples).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_dtype_is_refused(digits: Any, dtype: torch.dtype) -> None:
    other = ra.load("digits-cnn").to(dtype)
    with pytest.raises(ValueError, match=rf"float32 to craft in bfloat16 on.*got one of {dtype}"):
        ra.evaluate(other, digits, "FGSM", "Linf(0.1)", crafting="bfloat16")
    net = ra.load("digits-cnn")
    with pytest.raises(ValueError, match="float32 to craft"):
        ra.evaluate(net, digits, "FGSM", "Linf(0.1)", source=other, crafting="bfloat16")


def test_a_word_that_says_nothing_is_refused(net: Any, digits: Any) -> None:
    with pytest.raises(ValueError, match="'float32' or 'bfloat16', got 'bf16'"):
        ra.evaluate(net, digits, "FGSM", "Linf(0.1)", crafting="bf16")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="crafting"):
        ra.Cell("digits-cnn", "digits[:5]", "FGSM", "Linf(0.1)", crafting="bf16")


def test_a_cell_says_it_and_has_a_key_of_its_own() -> None:
    said = ("digits-cnn", "digits[:20]", "PGD(steps=3)", "Linf(0.1)")
    plain, low = ra.Cell(*said), ra.Cell(*said, crafting="bfloat16")
    assert "crafting" not in show(plain) and parse(show(low), Cell) == low
    assert key(plain) == key(ra.Cell(*said, crafting="float32")) != key(low)
    with Store(":memory:") as store:
        records = ra.sweep([plain, low], store)
        rows = [row.fields for row in store.rows()]
    assert [r.pedigree.get("crafting") for r in records] == [None, "bfloat16"]
    assert {f.crafting: f.attack_and_kernel for f in rows} == {
        "float32": "PGD(steps=3)",
        "bfloat16": "PGD(steps=3) in bfloat16",
    }


def test_fields_are_written_as_they_always_were_where_nothing_is_special() -> None:
    plain, low = CellFields(net="a"), CellFields(net="a", crafting="bfloat16")
    assert "crafting" not in plain.to_json()
    for fields in (plain, low):
        assert CellFields.from_json(json.loads(json.dumps(fields.to_json()))) == fields
