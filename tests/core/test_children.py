"""Seats: which GPUs and cores a child gets."""

import pytest

from vision_tutorial.core import children
from vision_tutorial.core.errors import UserError


def test_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "usable_cores", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(children, "gpu_names", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert children.seats(None) == [children.Seat((), (0, 1, 2, 3, 4))]
    assert [seat.cores for seat in children.seats(2)] == [(0, 1), (2, 3, 4)]
    assert len(children.seats(7)) == 7 and all(seat.cores for seat in children.seats(7))
    monkeypatch.setattr(children, "gpu_names", lambda: ["H100"] * 4)
    assert [seat.gpus for seat in children.seats(None)] == [("0",), ("1",), ("2",), ("3",)]
    assert [seat.gpus for seat in children.seats(None, 2)] == [("0", "1"), ("2", "3")]
    assert [seat.gpus for seat in children.seats(6)][4:] == [("0",), ("1",)]
    with pytest.raises(UserError, match="there are 4 GPUs"):
        children.seats(None, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-77")
    assert [seat.gpus for seat in children.seats(None)] == [("3",), ("GPU-77",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [seat.gpus for seat in children.seats(None)] == [()]
