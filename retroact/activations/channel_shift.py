"""ChannelShift: what stands at a site whose activation has one shift per channel."""

from __future__ import annotations

from torch import Tensor, nn

from retroact.activations.activation import Activation, Folded, Kernel


class ChannelShift(nn.Module, Activation):
    """activation(z + shift_c) for z of shape (n, c, …) or (n, …, c); `shift` has c numbers.

    The shift is a buffer that the state_dict does not hold: its home is the file of the spec.
    """

    shift: Tensor

    def __init__(self, shift: Tensor, activation: Activation | nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("shift", shift, persistent=False)

    @property
    def jump(self) -> bool:
        return isinstance(self.activation, Activation) and self.activation.jump

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> ChannelShift:
        inner = self.activation
        smooth = inner.surrogate(beta, kernel) if isinstance(inner, Activation) else inner
        return ChannelShift(self.shift, smooth)

    def folded(self, s: float) -> Folded | None:
        """f(s z + b) = factor · g(z + b/s), with f(s z) = factor · g(z)."""
        inner = self.activation.folded(s) if isinstance(self.activation, Activation) else None
        return None if inner is None else inner._replace(shift=self.shift.double() / s)

    def forward(self, z: Tensor) -> Tensor:
        # .to: a net that calls its activations as functions has no place to move the buffer from
        shift = self.shift.to(z)
        out: Tensor = self.activation(z + shift.view(channel_view(len(shift), z, "shifts")))
        return out


def channel_view(channels: int, z: Tensor, what: str) -> tuple[int, ...]:
    """The shape in which so many numbers, one per channel, broadcast to z of shape (n, c, …) or
    (n, …, c); `what` they are, in a word. ValueError where no axis has so many."""
    if z.ndim >= 2 and z.shape[1] == channels:
        return (-1, *[1] * (z.ndim - 2))
    if z.shape[-1] == channels:
        return (-1,)
    raise ValueError(
        f"{channels} {what}, but the activation's input has shape {tuple(z.shape)}; "
        "expected one per channel, on axis 1 or on the last one"
    )
