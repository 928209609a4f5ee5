"""What a rank sends, by the one definition that counting and prediction share: calls and bytes of each collective.

Bytes are those that leave a rank in the algorithm that moves least. Source: Thakur et al. 2005, tables 1 and 2.
"""

from dataclasses import dataclass, field


@dataclass
class Traffic:
    """What one rank sent along one line: calls and bytes by collective."""

    calls: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, size: int, calls: int = 1) -> None:
        """Calls that send `size` bytes each."""
        self.calls[name] = self.calls.get(name, 0) + calls
        self.bytes[name] = self.bytes.get(name, 0) + calls * size

    def merge(self, other: "Traffic", times: int = 1) -> None:
        """Adds what was sent elsewhere, so many times."""
        for name, calls in other.calls.items():
            self.calls[name] = self.calls.get(name, 0) + times * calls
            self.bytes[name] = self.bytes.get(name, 0) + times * other.bytes[name]


def parts(length: int, ranks: int) -> list[int]:
    """How many of `length` each rank keeps, as even as can be, the longer parts first."""
    return [length // ranks + (index < length % ranks) for index in range(ranks)]


def all_gather_bytes(ranks: int, part: int) -> int:
    """Each rank sends its part, of as many bytes as the longest one, to all others."""
    return (ranks - 1) * part


def all_reduce_bytes(ranks: int, size: int) -> int:
    """Each rank sends its share of the sum, and of the result, to all others: 2 (P - 1) / P of the tensor."""
    return round(2 * (ranks - 1) / ranks * size)
