"""A toy to train: a linear policy that should learn some hidden weights, by trying small random changes.

Its weights are an array, which is sent to the registry from where it lies. The same works for other objects that have a buffer, like NumPy
arrays. A PyTorch module has none: torch.save its state_dict() into an io.BytesIO, and send what the buffer's getvalue() returns.
"""

from __future__ import annotations

import random
from array import array

SIZE = 64


class Policy:
    def __init__(self, weights: array[float] | None = None) -> None:
        self.weights = array("d", bytes(8 * SIZE)) if weights is None else weights

    @classmethod
    def from_bytes(cls, data: bytes) -> Policy:
        return cls(array("d", data))

    def act(self, observation: list[float]) -> float:
        return sum(weight * value for weight, value in zip(self.weights, observation, strict=True))

    def changed(self, chance: random.Random) -> Policy:
        return Policy(array("d", [weight + chance.gauss(0, 0.1) for weight in self.weights]))


class Environment:
    """Rewards a policy for being near to what it doesn't know: 0 is perfect, less is worse."""

    def __init__(self, seed: int = 1) -> None:
        chance = random.Random(seed)
        self._hidden = [chance.uniform(-1, 1) for _ in range(SIZE)]

    def observe(self, chance: random.Random) -> list[float]:
        return [chance.uniform(-1, 1) for _ in range(SIZE)]

    def reward(self, policy: Policy) -> float:
        return -sum((weight - hidden) ** 2 for weight, hidden in zip(policy.weights, self._hidden, strict=True))
