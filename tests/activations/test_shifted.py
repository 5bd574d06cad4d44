"""Shifts, one per channel, and the file in which they lie."""

from __future__ import annotations

import math

import pytest
import torch

from retroact.activations.channel_shift import ChannelShift
from retroact.activations.ramp import Ramp
from retroact.activations.shifted import ShiftedReLU, write_shifts
from retroact.activations.site import Site
from retroact.spec import SpecError, parse, show


class TestShifts:
    def test_the_file_is_named_by_its_hash(self, tmp_path) -> None:
        made = write_shifts(tmp_path / "b.safetensors", {"relu": torch.tensor([1.0, -1.0])})
        assert len(made.sha256) == 64
        assert parse(show(made)) == made
        shift = made.at(Site("relu", own=Ramp(cap=6.0)))
        assert isinstance(shift, ChannelShift)
        z = torch.tensor([[0.5, 0.5], [8.0, 8.0]])
        assert shift(z).tolist() == [[1.5, 0.0], [6.0, 6.0]]
        assert shift(z.view(2, 2, 1, 1)).flatten().tolist() == [1.5, 0.0, 6.0, 6.0]
        assert shift(z.view(2, 1, 1, 2)).flatten().tolist() == [1.5, 0.0, 6.0, 6.0]
        with pytest.raises(ValueError, match="2 shifts, but the activation's input has shape"):
            shift(torch.zeros(2, 3))

    def test_another_file_of_the_same_name_is_refused(self, tmp_path) -> None:
        file = tmp_path / "b.safetensors"
        made = write_shifts(file, {"relu": torch.tensor([1.0])})
        write_shifts(file, {"relu": torch.tensor([2.0])})
        with pytest.raises(SpecError, match="these are other shifts"):
            made.at(Site("relu"))
        with pytest.raises(SpecError, match="these are other shifts"):
            ShiftedReLU(str(file), made.sha256)

    def test_a_file_that_is_not_there(self, tmp_path) -> None:
        with pytest.raises(SpecError, match="no file"):
            ShiftedReLU(str(tmp_path / "none.safetensors"))
        later = ShiftedReLU(str(tmp_path / "none.safetensors"), "0" * 64)
        with pytest.raises(FileNotFoundError, match="put it back"):
            later.at(Site("relu"))

    def test_shifts_that_are_no_numbers(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="expected finite shifts"):
            write_shifts(tmp_path / "b.safetensors", {"relu": torch.tensor([math.nan])})
        assert not (tmp_path / "b.safetensors").exists()
