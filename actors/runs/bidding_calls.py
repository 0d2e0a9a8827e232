"""Calls that agents bid for: the best offer gets the task, and on failure the next one. See ADR 0024."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.call import Call
from squadron.actors.runs.ends import refusal
from squadron.actors.runs.entries import Awarded, CallEnd, CallsEnded, Dispatch, Entry, Sending
from squadron.runtime.asking.negotiation import acceptance, award, call_for_bids, reject
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.bids import Bids
from squadron.runtime.wire.limits import Budget, Deadline

#: A call, and what each topic that is to bid for it would get.
Wanted = tuple[Call, dict[str, Any]]


@dataclass
class BiddingCalls:
    """One attempt's side of the negotiations of a run.

    Whom a call is awarded to is stored before any task goes out, so that each attempt tries the same bids in the
    same order. Before that nothing has come of it: it may be called for bids again.
    """

    ctx: TurnContext
    books: RunBooks
    run: str

    async def bids(self, wanted: Sequence[Wanted], deadline_ms: int) -> list[Bids]:
        """Have agents bid for calls, all at once."""
        share = self.books.share(len(wanted))
        return await asyncio.gather(*(self._bids(contents, share, deadline_ms) for _, contents in wanted))

    def awards(self, wanted: Sequence[Wanted], bids: Sequence[Bids], deadline_ms: int) -> list[Entry]:
        """What is to be stored before any task goes out; by what is left in this moment."""
        share, entries, tasks = self.books.share(len(wanted)), list[Entry](), 0
        for (call, contents), each in zip(wanted, bids, strict=True):
            if why := self.books.refusal(1, tasks):
                entries.append(CallsEnded(at=self._now(), ends=(refusal(call, why),)))
                continue
            tasks += 1
            entries += self._awarded(call, tuple(contents), each, share, deadline_ms)
        return entries

    async def _bids(self, contents: dict[str, Any], share: Budget, deadline_ms: int) -> Bids:
        clock = self.ctx.caller.ports.clock
        # Each topic has its own shape of the same arguments.
        calls = (
            call_for_bids(
                self.ctx.caller,
                topic,
                content,
                deadline=Deadline(deadline_ms, clock),
                tokens=share.tokens,
                usd=share.usd,
                owner=self.run,
                parent=self.ctx.message.id,
                conversation_id=self.ctx.message.context.conversation_id,
                sealed=self.ctx.is_sealed,
            )
            for topic, content in contents.items()
        )
        answers = await asyncio.gather(*calls)
        refusals = {topic: reason for each in answers for topic, reason in each.refusals.items()}
        return Bids(tuple(offer for each in answers for offer in each.offers), refusals)

    def _awarded(
        self, call: Call, topics: tuple[str, ...], bids: Bids, share: Budget, deadline_ms: int
    ) -> Iterable[Entry]:
        left_s = max(0.0, deadline_ms / 1000 - self._now())
        order = award(bids, now=self._now(), time_left_s=left_s, tokens=share.tokens, usd=share.usd)
        if bids.offers and not order:
            reason = "its bids cost more than there is, or take too long; call one tool by itself"
            yield CallsEnded(at=self._now(), ends=(refusal(call, reason),))
            return
        positions = tuple(bids.offers.index(offer) for offer in order)
        awarded = Awarded(at=self._now(), call=call.id, topics=topics, bids=bids, order=positions)
        yield awarded
        yield self.attempt(call, awarded, 0, share, deadline_ms)

    def attempt(self, call: Call, awarded: Awarded, index: int, share: Budget, deadline_ms: int) -> Entry:
        """What is to be stored for the task at this index: it goes out, or its bid is over.

        Args:
            share: what it may spend; the price of its bid can only be less.
        """
        offer, topic = awarded.offer(index), awarded.topics[0]
        if offer is not None:
            topic, share = offer.topic, acceptance(offer, share)["budget"]
            if why := self.books.refusal(1) or ("" if offer.is_valid(self._now()) else "its bid is over"):
                end = CallEnd(call=call.id, index=index, topic=topic, outcome="rejected", reason=why)
                return CallsEnded(at=self._now(), ends=(end,))
        out = Dispatch(
            call=call.id, kind="topic", topic=topic, first=index, deadline_ms=deadline_ms, share=share.to_wire()
        )
        return Sending(at=self._now(), calls=(out,))

    async def reject_others(self, call: Call) -> None:
        """Tell those who offered and get nothing; best effort."""
        assert call.award is not None
        tried = call.award.offers[: call.tasks]
        others = [offer for offer in call.award.bids.offers if offer not in tried]
        await reject(self.ctx.caller.ports, others, "somebody else has done it")

    def _now(self) -> float:
        return self.ctx.caller.ports.clock.time()
