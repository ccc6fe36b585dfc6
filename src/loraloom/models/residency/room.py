"""Room to compute in, beside what is resident: who leaves for it, and who becomes smaller."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable

import torch

from loraloom.models.residency import residents
from loraloom.models.residency.copies import Copies
from loraloom.models.residency.residents import Guest, Residents
from loraloom.models.residency.unmerged import Unmerged
from loraloom.weights.capacity import give_back, is_allocation_failure

DOUBT = 2
"""How far off an estimate of what computing takes may be."""


class Room(Residents):
    """Residents that leave room for what is computed with them; see `memory.Memory`."""

    def has_room_for(self, guest: Guest, size: int, needed: int) -> bool:
        """Whether a guest of so many bytes can be there and compute with so many more; others leave for
        it."""
        self.admit(guest)
        found, coming = False, -1
        while coming != (coming := size - guest.held):  # others make room, and so may this one
            found = self.has_room(needed + coming)
        return found

    def is_free(self, needed: int) -> bool:
        """Whether so many bytes are free as things are; nothing leaves for them."""
        return needed <= self._spare()

    def has_room(
        self,
        needed: int,
        kept: Hashable = None,
        *,
        beside: Collection[Hashable] = (),
        may_shrink: bool = True,
    ) -> bool:
        """Whether so many bytes are free to compute with; others than `kept` leave until they are with a
        margin, as far as there are others, and then `kept` holds less if it may. beside: keys of those that
        are in use together with it, which become smaller after it."""
        self._asked = needed
        wanted = needed if self.device.type == "cpu" else needed + residents.MARGIN
        if wanted > self._spare() and self.device.type == "cpu":
            give_back(self.device)
        while wanted > self._spare():
            if not self._evict((kept, *beside)):
                for key in (kept, *beside) if may_shrink else ():
                    if wanted > self._spare():
                        self._shrink((wanted, needed), key)
                return needed <= self._spare()
        self._grow(needed, kept)
        return True

    def _shrink(self, wanted: Iterable[int], kept: Hashable) -> None:
        """Make a resident so small that the first of these numbers of bytes is free for which it can be."""
        if self.device.type == "cpu" or kept not in self._residents:
            return
        kind, resident = self._residents[kept]
        is_whole = resident.is_whole
        any(self._fit(resident, resident.nbytes + self._spare() - size) for size in wanted)
        give_back(self.device)
        if is_whole:
            self._say_streamed(kind, resident.source, resident)

    def _grow(self, needed: int, kept: Hashable) -> None:
        """Let a resident hold what has become free: weights that were fetched, or wide copies."""
        if self.device.type == "cpu" or kept not in self._residents:
            return
        if needed >= self._too_much.get(kept, needed + 1):
            return
        resident = self._residents[kept][1]
        free = self._spare() - needed - residents.MARGIN
        try:
            if resident.streaming is not None and resident.streaming.streamed:
                if free > resident.nbytes // 4:
                    resident.fit(resident.nbytes + free)
            elif not self.computing.narrow_weights:
                resident.widen(free)
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            self._note_too_much(kept)

    def _reserve(
        self,
        needed: int,
        batch: int,
        kept: Hashable,
        unmerged: Unmerged | None = None,
        beside: Collection[Hashable] = (),
    ) -> None:
        """Make room for one evaluation. torch.OutOfMemoryError where fewer at once would need less, or where
        so much is missing that the system would end the process: `needed` is an estimate."""
        if torch.is_grad_enabled() or self._finds_room(needed, kept, unmerged, beside):
            return
        needed += self._for_weights(kept)
        self.check_doubt(needed, 0 if batch > 1 else DOUBT)

    def check_doubt(self, needed: int, doubt: float = DOUBT) -> None:
        """torch.OutOfMemoryError where so many bytes are more than `doubt` times what is free."""
        free = self._spare()
        if needed > doubt * free:
            raise torch.OutOfMemoryError(f"about {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")

    def _finds_room(
        self,
        needed: int,
        kept: Hashable,
        unmerged: Unmerged | None = None,
        beside: Collection[Hashable] = (),
    ) -> bool:
        """As `has_room`, with what making the resident's own weights takes, which is more once it holds less,
        and with what runs beside them."""
        found, own = False, -1
        while own < (own := max(own, self._for_weights(kept))):
            more = needed + own
            if unmerged is not None and self.device.type != "cpu":
                copies = unmerged.copies
                if self._may_stay(copies, more, kept):
                    found = True
                    continue
                more += 2 * copies.largest * self.dtype.itemsize
            found = self.has_room(more, kept, beside=beside)
        return found

    def _for_weights(self, kept: Hashable) -> int:
        """Bytes that a resident takes for a moment when its weights are fetched and multiplied."""
        if kept not in self._residents:
            return 0
        resident = self._residents[kept][1]
        return resident.filling + resident.working

    def _may_stay(self, copies: Copies, needed: int, kept: Hashable) -> bool:
        """Make room for what runs beside a network's weights, too, so that it stays from step to step; where
        there is none, it is put away."""
        self.admit(copies)
        whole, coming = copies.elements * self.dtype.itemsize, -1
        while coming != (coming := whole - copies.held):  # others make room, and so may these
            is_refused = needed + coming >= self._too_much.get(kept, needed + coming + 1)
            copies.stay = not is_refused and self.has_room(needed + coming, kept)
            copies.stay = copies.stay and needed + coming + residents.MARGIN <= self._spare()
        if not copies.stay:
            copies.put_away()
        return copies.stay
