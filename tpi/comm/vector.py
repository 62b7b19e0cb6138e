"""A float32 vector and its form on the wire: the same memory, or a bfloat16 copy of it."""

import torch

from tpi.comm.wire import WireDtype

TORCH_DTYPES = {WireDtype.FLOAT32: torch.float32, WireDtype.BFLOAT16: torch.bfloat16}


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, without a copy."""
    return tensor.view(torch.uint8).numpy().data


class Inbox:
    """Preallocated places for the vectors of other ranks, as they come off the wire.

    Pages are touched by use only, so a place that is never needed takes no memory.
    """

    def __init__(self, count: int, num_elements: int, dtype: WireDtype) -> None:
        self._itemsize = dtype.itemsize
        self._places = [torch.empty(num_elements, dtype=TORCH_DTYPES[dtype]) for _ in range(count)]
        self._bytes = [as_bytes(place) for place in self._places]

    def values(self, place: int, num_elements: int) -> torch.Tensor:
        """The first elements of a place."""
        return self._places[place][:num_elements]

    def bytes(self, place: int, num_elements: int) -> memoryview:
        """The same as memory."""
        return self._bytes[place][: num_elements * self._itemsize]


class WireVector:
    """A flat float32 vector that is summed in place, and what goes on the wire for it.

    With float32 on the wire `pack` and `unpack` do nothing: frames are sent from and received into
    the vector itself. With bfloat16, `pack` rounds to nearest even and `unpack` takes over the
    rounded values, so that a rank computes with exactly what the others got.
    """

    def __init__(self, values: torch.Tensor, wire: torch.Tensor | None) -> None:
        self.values = values
        self._wire = values if wire is None else wire[: values.numel()]
        self._copied = wire is not None
        self._bytes = as_bytes(self._wire)
        self._itemsize = self._wire.element_size()

    def pack(self, start: int, stop: int) -> None:
        """Make the wire form of a piece from its values."""
        if self._copied:
            self._wire[start:stop].copy_(self.values[start:stop])

    def unpack(self, start: int, stop: int) -> None:
        """Take the values of a piece from its wire form."""
        if self._copied:
            self.values[start:stop].copy_(self._wire[start:stop])

    def round(self, start: int, stop: int) -> None:
        """Make the values of a piece those that its wire form holds."""
        self.pack(start, stop)
        self.unpack(start, stop)

    def bytes(self, start: int, stop: int) -> memoryview:
        """The wire form of a piece, to send or to receive into."""
        return self._bytes[start * self._itemsize : stop * self._itemsize]
