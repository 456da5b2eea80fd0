"""A layer as a tape of operations: what each keeps for the backward pass, and what it needs while it runs.

One tape gives both the bytes saved for backward (the distinct storages) and the transient peaks of forward, backward
and recomputation (by walking it as torch's autograd engine would), so the two can never disagree.

All sizes are bytes on one rank for one microbatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Saved(NamedTuple):
    """A storage kept for backward. Operations that keep the same storage (equal `key`) share its bytes."""

    key: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. Its backward allocates the gradients of its input and weight while the gradient of its output and
    its saved storages are alive, then releases both."""

    name: str
    output: int = 0
    """Bytes of its output (0: a view)."""
    output_key: str = ""
    """Set where the output is a storage that an operation keeps: it is then counted once."""
    saves: tuple[Saved, ...] = ()
    grad_input: int = 0
    """Gradient of the input; 0 passes the output's gradient on (a view, an addition, an in-place operation)."""
    weight_grad: int = 0
    """Weight gradient that is a tensor of its own until accumulated (0 with gradient accumulation fusion)."""
    forward_temp: int = 0
    backward_temp: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """x + f(x): backward keeps the gradient of the sum alive while f is walked, then adds both."""

    items: tuple[Item, ...]
    width: int
    """Bytes of x."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Items whose storages are dropped after forward and rebuilt in backward from `saves`."""

    name: str
    saves: tuple[Saved, ...]
    items: tuple[Item, ...]
    output: int
    output_key: str = ""


Item = Op | Branch | Checkpoint
Tape = tuple[Item, ...]


def saved_by_tensor(tape: Tape) -> dict[str, int]:
    """Name and bytes of every distinct storage that the tape keeps for backward."""
    storages: dict[str, int] = {}
    for s in _saves(tape):
        storages[s.key] = max(s.bytes, storages.get(s.key, 0))
    return {key: size for key, size in storages.items() if size}


def saved_bytes(tape: Tape) -> int:
    """Bytes kept for backward."""
    return sum(saved_by_tensor(tape).values())


def _saves(items: tuple[Item, ...]) -> Iterator[Saved]:
    for item in items:
        if isinstance(item, Branch):
            yield from _saves(item.items)
        else:
            yield from item.saves


class _Walker:
    """Follows storages and gradients being born and dying."""

    def __init__(self) -> None:
        self.alive = 0
        self.peak = 0
        self.sizes: dict[str, int] = {}
        self.users: dict[str, int] = {}

    def touch(self, transient: int) -> None:
        """Something of `transient` bytes is alive for a moment."""
        self.peak = max(self.peak, self.alive + transient)

    def save(self, saves: tuple[Saved, ...]) -> None:
        for s in saves:
            grown = max(0, s.bytes - self.sizes.get(s.key, 0))
            self.sizes[s.key] = self.sizes.get(s.key, 0) + grown
            self.alive += grown
            self.users[s.key] = self.users.get(s.key, 0) + 1

    def release(self, saves: tuple[Saved, ...]) -> None:
        for s in saves:
            self.users[s.key] -= 1
            if self.users[s.key] == 0:
                self.alive -= self.sizes.pop(s.key)
                del self.users[s.key]

    def forward(self, items: Tape) -> None:
        """Walk forward, keeping what is saved."""
        in_hand = 0  # the latest output, where no operation keeps it
        for item in items:
            self.save(item.saves if not isinstance(item, Branch) else ())
            if isinstance(item, Branch):
                self.touch(in_hand)
                self.forward(item.items)
                self.touch(item.width)
                in_hand = item.width
                continue
            output = 0 if item.output_key in self.sizes else item.output
            self.touch(in_hand + output + (item.forward_temp if isinstance(item, Op) else 0))
            if item.output:
                in_hand = output

    def backward(self, items: Tape, grad: int, shared: bool) -> int:
        """Walk backward from an output gradient of `grad` bytes, counted as alive. A `shared` gradient belongs to
        somebody else and is not released. Returns the bytes of the input's own gradient (0: the shared one)."""
        for item in reversed(items):
            if isinstance(item, Op):
                self.touch(item.grad_input + item.weight_grad + item.backward_temp)
                self.release(item.saves)
                new = item.grad_input
            elif isinstance(item, Checkpoint):
                self.forward(item.items)
                output = 0 if item.output_key in self.sizes else item.output
                self.alive += output  # the rebuilt output stays until the checkpoint's backward has ended
                inner = self.backward(item.items, grad, shared)
                self.alive -= output
                self.release(item.saves)
                if inner:
                    grad, shared = inner, False
                continue
            else:
                inner = self.backward(item.items, grad, shared=True)
                self.touch(item.width)  # the sum of the branch's and the stream's gradients
                self.alive -= inner
                new = item.width
            if new:
                self.alive += new - (0 if shared else grad)
                grad, shared = new, False
        return 0 if shared else grad


def backward_peak(tape: Tape, grad: int) -> int:
    """Most bytes alive during backward, over what is alive when the forward pass has ended; the gradient of the tape's
    output (`grad` bytes) is counted."""
    walker = _Walker()
    walker.save(tuple(_saves(tape)))
    walker.alive = walker.peak = grad
    walker.backward(tape, grad, shared=False)
    return walker.peak
