"""Happens-before by sets of events, for tests of the checker: no clocks, no epochs, no shadow memory.

Every event has the set of events before it, as the bits of an integer. An access races with an earlier one of the same
word when it does not have it in its set. That is all of the definition, and slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SCOPES = ("cta", "cluster", "gpu", "sys")


@dataclass(frozen=True)
class Thread:
    """Who acts: rank, cluster, CTA, warp."""

    rank: int
    cluster: int
    cta: int
    warp: int

    def distance(self, other: Thread) -> int:
        """Index of the narrowest scope that holds both."""
        if self.rank != other.rank:
            return 3
        if self.cluster != other.cluster:
            return 2
        return 1 if self.cta != other.cta else 0


@dataclass
class Access:
    """An access to a word that happened."""

    event: int
    is_write: bool
    is_async: bool
    chain: object = None


@dataclass
class Released:
    """Something that can be acquired from a location."""

    events: int
    scope: int
    by: Thread


@dataclass
class Phase:
    """What a barrier has collected: in the open phase, and before."""

    open: int = 0
    over: int = 0

    def end(self) -> None:
        self.over |= self.open
        self.open = 0


@dataclass
class Operation:
    """Asynchronous work: what is before it, its own event, its chain (None: it completes on a barrier)."""

    before: int
    event: int
    chain: object = None

    @property
    def done(self) -> int:
        return self.before | 1 << self.event


@dataclass
class Model:
    """All threads and words."""

    num_events: int = 0
    seen: dict[Thread, int] = field(default_factory=dict)
    accesses: dict[object, list[Access]] = field(default_factory=dict)
    locations: dict[object, list[Released]] = field(default_factory=dict)
    looked: dict[Thread, list[Released]] = field(default_factory=dict)
    fences: dict[Thread, dict[int, int]] = field(default_factory=dict)
    proxy_fences: list[tuple[int, int, str]] = field(default_factory=list)
    last: str | None = None
    """Verdict on the last access."""

    def event(self, thread: Thread) -> int:
        """A new event of `thread`, after all that it has seen."""
        event = self.num_events
        self.num_events += 1
        self.seen[thread] = self.seen.get(thread, 0) | 1 << event
        return event

    def before(self, thread: Thread) -> int:
        return self.seen.get(thread, 0)

    def access(self, thread: Thread, word: object, is_write: bool) -> str | None:
        """An ordinary access; returns what it collides with, "race" or None."""
        before = self.before(thread)
        verdict = self._collides(word, before, is_write, None)
        self.accesses.setdefault(word, []).append(Access(self.event(thread), is_write, False))
        self.last = verdict
        return verdict

    def _collides(self, word: object, before: int, is_write: bool, chain: object) -> str | None:
        for other in self.accesses.get(word, ()):
            is_own = chain is not None and other.chain == chain
            if (is_write or other.is_write) and not is_own and not before >> other.event & 1:
                return "race"
        return None

    def issue(self, thread: Thread, chain: object) -> Operation:
        """`thread` starts asynchronous work."""
        before = self.before(thread)
        event = self.num_events
        self.num_events += 1
        self.event(thread)  # what the thread does next is another event
        return Operation(before, event, chain)

    def run(self, operation: Operation, word: tuple[str, object], is_write: bool) -> str | None:
        """The work accesses a word; "proxy" when only a fence between the proxies is missing."""
        verdict = self._collides(word, operation.before, is_write, operation.chain)
        if verdict is None:
            for other in self.accesses.get(word, ()):
                if other.is_write and not other.is_async and not self._fenced(other.event, operation, word[0]):
                    verdict = "proxy"
        self.accesses.setdefault(word, []).append(Access(operation.event, is_write, True, operation.chain))
        self.last = verdict
        return verdict

    def _fenced(self, event: int, operation: Operation, kind: str) -> bool:
        return any(
            operation.before >> fence & 1 and before >> event & 1 and space in ("", kind)
            for fence, before, space in self.proxy_fences
        )

    def fence_proxy(self, thread: Thread, space: str) -> None:
        before = self.before(thread)
        self.proxy_fences.append((self.event(thread), before, space))

    def store(self, thread: Thread, location: object, scope: int, *, releases: bool, keeps: bool) -> None:
        """A strong store (`keeps`: an atomic, which continues what was released before)."""
        entries = self.locations.setdefault(location, [])
        if not keeps:
            entries.clear()
        if releases:
            entries.append(Released(self.before(thread), scope, thread))
            self.event(thread)
        else:
            for fence_scope, events in self.fences.get(thread, {}).items():
                entries.append(Released(events, min(fence_scope, scope), thread))

    def load(self, thread: Thread, location: object, scope: int, *, acquires: bool) -> None:
        """A strong load, or the reading half of an atomic."""
        for entry in list(self.locations.get(location, ())):
            distance = entry.by.distance(thread)
            if distance > min(entry.scope, scope):
                continue
            if acquires:
                self.seen[thread] = self.before(thread) | entry.events
            else:
                self.looked.setdefault(thread, []).append(Released(entry.events, distance, entry.by))

    def fence(self, thread: Thread, scope: int) -> None:
        """fence.acq_rel."""
        for entry in self.looked.get(thread, ()):
            if entry.scope <= scope:
                self.seen[thread] = self.before(thread) | entry.events
        self.fences.setdefault(thread, {})[scope] = self.before(thread)
        self.event(thread)

    def arrive(self, phase: Phase, thread: Thread) -> None:
        phase.open |= self.before(thread)
        self.event(thread)

    def observe(self, phase: Phase, thread: Thread) -> None:
        self.seen[thread] = self.before(thread) | phase.over

    def complete(self, phase: Phase, operation: Operation) -> None:
        phase.open |= operation.done

    def wait(self, thread: Thread, operations: list[Operation]) -> None:
        """`thread` has waited for operations of a chain: it knows that they are done, not what their issuer knew."""
        for operation in operations:
            self.seen[thread] = self.before(thread) | 1 << operation.event
