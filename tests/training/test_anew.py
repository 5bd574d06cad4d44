"""A network trained anew is another one of the same architecture, and is trained once."""

import pytest
import torch

import retroact as ra
from retroact.nets.zoo import ZooError
from retroact.training import anew


def test_a_network_is_trained_anew_once(tmp_path, monkeypatch):
    net = anew.trained_anew("digits-cnn", 1, epochs=2, cache=tmp_path)
    monkeypatch.setattr(anew, "train", None)  # a second training would fail
    again = anew.trained_anew("digits-cnn", 1, epochs=2, cache=tmp_path)
    x = ra.data("digits[:20]").images
    with torch.no_grad():
        assert torch.equal(net(x), again(x))
        assert not torch.equal(net(x), ra.load("digits-cnn")(x))


def test_the_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    anew.trained_anew("digits-cnn", 3, epochs=1)
    assert (tmp_path / "retroact/anew/seed3-epochs1/digits-cnn.json").is_file()


def test_a_network_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(ZooError, match="no recipe"):
        anew.trained_anew("nobodys", 1, cache=tmp_path)
