"""Which nodes run, in which order. Pure and iterative: the depth of a graph costs no stack."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import GraphNode


class CycleError(WorkflowError):
    """Nodes that wait for each other; `nodes` are their ids, in the order of the links."""

    def __init__(self, nodes: tuple[str, ...], labels: Iterable[str]) -> None:
        self.nodes = nodes
        way = " → ".join([*labels])
        super().__init__(f"Dependency cycle detected: {way}. Remove one of these links.")


def producers(node: GraphNode) -> tuple[str, ...]:
    """The nodes that a node takes an input from, each once."""
    return tuple(dict.fromkeys(link.node for link in node.links().values()))


def order(
    nodes: Mapping[str, GraphNode], targets: Iterable[str], known: Container[str] = ()
) -> tuple[str, ...]:
    """The targets and all that they need, producers first, without those that are known already.

    Raises WorkflowError for a link to a node that is not there, CycleError for nodes that need each other.
    """
    done: dict[str, None] = {}
    path: dict[str, None] = {}
    stack: list[tuple[str, bool]] = [(t, False) for t in reversed([*targets])]
    while stack:
        node_id, left = stack.pop()
        if left:
            del path[node_id]
            done[node_id] = None
            continue
        if node_id in done or node_id in known:
            continue
        if node_id in path:
            raise _cycle(nodes, path, node_id)
        path[node_id] = None
        stack.append((node_id, True))
        node = nodes[node_id]
        for producer in reversed(producers(node)):
            if producer not in nodes:
                raise WorkflowError(f"{node.label()} takes an input from node {producer}, which is not there")
            if producer not in done:
                stack.append((producer, False))
    return tuple(done)


def _cycle(nodes: Mapping[str, GraphNode], path: Iterable[str], start: str) -> CycleError:
    """The cycle that closes at `start`; `path` are its consumers, outermost first."""
    way = [*path]
    loop = [start, *reversed(way[way.index(start) + 1 :]), start]
    return CycleError(tuple(loop), (nodes[i].label() for i in loop))


class Plan:
    """What still has to run and what it waits for. It grows when inputs are asked for or nodes expanded.

    links: every producer of a node; needs: those without which it cannot start (all but lazy ones);
    available: whether a node's result is at hand, so that it need not run; urgent: nodes whose start should
    not wait (outputs, which people look at, and async nodes, which wait for something else);
    release: called when no pending node needs a result any more.
    blocked: nodes that were given up because they need one that has failed.
    """

    def __init__(
        self,
        *,
        links: Callable[[str], tuple[str, ...]],
        needs: Callable[[str], tuple[str, ...]],
        available: Callable[[str], bool],
        urgent: Callable[[str], bool],
        release: Callable[[str], None],
    ) -> None:
        self._links, self._needs, self._available = links, needs, available
        self._urgent, self._release = urgent, release
        self._waits: dict[str, int] = {}
        self._consumers: dict[str, dict[str, None]] = {}
        self._holds: dict[str, dict[str, None]] = {}
        self._uses: Counter[str] = Counter()
        self._ready: list[tuple[int, int, str]] = []
        self._running: set[str] = set()
        self._begun: set[str] = set()
        self._roots: set[str] = set()
        self._failed: set[str] = set()
        self._sequence = 0
        self.blocked: dict[str, None] = {}

    def __len__(self) -> int:
        """How many nodes have not finished."""
        return len(self._waits)

    def add(self, node_id: str) -> None:
        """Let a node run, for its own sake, after all that it needs and that is not available."""
        self._roots.add(node_id)
        self._add(node_id)

    def _add(self, node_id: str) -> None:
        stack, added, links = [node_id], list[str](), list[tuple[str, str]]()
        hopeless: list[str] = []
        while stack:
            current = stack.pop()
            if current in self._waits:
                continue
            self._waits[current] = 0
            self._consumers[current] = {}
            self._holds[current] = {}
            added.append(current)
            for producer in self._links(current):
                self._hold(current, producer)
            for producer in self._needs(current):
                if producer in self._failed or producer in self.blocked:
                    hopeless.append(current)
                elif not self._available(producer):
                    stack.append(producer)
                    links.append((producer, current))
        for producer, consumer in links:
            self._block(producer, consumer)
        for current in added:
            self._offer(current)
        for current in hopeless:
            self._give_up(current)

    def require(self, producer: str, consumer: str) -> None:
        """Let a node that has begun wait for one more producer; call `postpone` when all are said. Where that
        one has failed, or cannot run, the node cannot either."""
        if consumer not in self._waits:
            return
        self._hold(consumer, producer)
        if self._available(producer):
            return
        if producer not in self._failed and producer not in self.blocked:
            self._add(producer)
        if producer in self._waits:
            self._block(producer, consumer)
        else:
            self._give_up(consumer)

    def next(self) -> str | None:
        """A node that can start now; None if all that is left waits for others."""
        while self._ready:
            _, _, node_id = heapq.heappop(self._ready)
            if self._waits.get(node_id) == 0 and node_id not in self._running:
                self._running.add(node_id)
                self._begun.add(node_id)
                return node_id
        return None

    def postpone(self, node_id: str) -> None:
        """Put a node that was started back, behind what it now requires."""
        self._running.discard(node_id)
        if node_id in self._waits:
            self._offer(node_id)

    def finish(self, node_id: str) -> None:
        """The node's result is available: its consumers may start, what only it needed is released."""
        self._running.discard(node_id)
        del self._waits[node_id]
        for consumer in self._consumers.pop(node_id):
            self._waits[consumer] -= 1
            self._offer(consumer)
        self._let_go(node_id)
        if node_id not in self._uses:
            self._release(node_id)

    def fail(self, node_id: str) -> None:
        """The node has failed: nodes that need it are `blocked`, and what only those needed is not run."""
        self._failed.add(node_id)
        self._give_up(node_id)

    def _give_up(self, node_id: str) -> None:
        """Take a node out that has failed or is blocked, with all that waits for it."""
        stack = [node_id]
        while stack:
            current = stack.pop()
            if current not in self._waits:
                continue
            if current not in self._failed:
                self.blocked[current] = None
            stack += self._consumers[current]
            self._take_out(current)

    def _take_out(self, node_id: str) -> None:
        """Forget a node, and those producers that have not begun and that nothing else waits for."""
        stack = [node_id]
        while stack:
            current = stack.pop()
            del self._waits[current], self._consumers[current]
            self._running.discard(current)
            for producer in self._holds[current]:
                consumers = self._consumers.get(producer, {})
                if current in consumers:
                    del consumers[current]
                    if not consumers and producer not in self._begun and producer not in self._roots:
                        stack.append(producer)
            self._let_go(current)

    def _let_go(self, node_id: str) -> None:
        for producer in self._holds.pop(node_id):
            self._uses[producer] -= 1
            if not self._uses[producer]:
                del self._uses[producer]
                self._release(producer)

    def cycle(self) -> tuple[str, ...]:
        """Nodes that wait for each other, once nothing can start and nothing runs."""
        producer_of = {c: p for p, consumers in self._consumers.items() for c in consumers}
        way: dict[str, None] = {}
        current = next(iter(producer_of))
        while current not in way:
            way[current] = None
            current = producer_of[current]
        seen = [*way]
        return (current, *reversed(seen[seen.index(current) + 1 :]), current)

    def _hold(self, consumer: str, producer: str) -> None:
        if producer not in self._holds[consumer]:
            self._holds[consumer][producer] = None
            self._uses[producer] += 1

    def _block(self, producer: str, consumer: str) -> None:
        if consumer not in self._consumers[producer]:
            self._consumers[producer][consumer] = None
            self._waits[consumer] += 1

    def _offer(self, node_id: str) -> None:
        if self._waits[node_id] == 0 and node_id not in self._running:
            self._sequence += 1
            heapq.heappush(self._ready, (self._rank(node_id), self._sequence, node_id))

    def _rank(self, node_id: str) -> int:
        """Urgent nodes first, then those that an urgent node waits for, then those one step further."""
        if self._urgent(node_id):
            return 0
        near = self._consumers[node_id]
        if any(self._urgent(consumer) for consumer in near):
            return 1
        if any(self._urgent(far) for consumer in near for far in self._consumers[consumer]):
            return 2
        return 3
