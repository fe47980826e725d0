"""Joins calls that arrive close together into batches for one worker thread; knows nothing of HTTP or pictures."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Batcher", "BatcherClosed"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BatcherClosed(Exception):
    """A call came after `Batcher.close`."""


@dataclass(slots=True)
class _Call(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]
    arrived: float


class Batcher(Generic[Item, Answer]):
    """Collects items and hands them to `run` in batches, in the order they came.

    A batch starts as soon as it is full, or when its oldest item has waited `wait_s`. While one batch runs the next one
    gathers, so a busy server fills its batches without anyone waiting on purpose. Must be made and used in one event
    loop; `run` is called in `executor`, a batch at a time.

    Args:
        run: Takes between 1 and `batch_size` items and returns as many answers, in the same order. An answer that is an
            exception is raised for that item alone.
        batch_size: Most items per call.
        wait_s: Longest wait for company, in seconds.
        executor: Where `run` is called; several batchers may share a single thread.

    Attributes:
        items: Handed to `run` so far.
        batches: Calls of `run` so far.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        *,
        batch_size: int,
        wait_s: float,
        executor: Executor,
    ) -> None:
        self.items = 0
        self.batches = 0
        self._run = run
        self._batch_size = batch_size
        self._wait_s = wait_s
        self._executor = executor
        self._waiting: deque[_Call[Item, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        """Return the answer for one item. A caller that is cancelled leaves its batch alone.

        Raises:
            BatcherClosed: After `close`.
            Exception: What `run` gave or raised for this item.
        """
        if self._closing:
            raise BatcherClosed
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        call = _Call[Item, Answer](item, loop.create_future(), loop.time())
        self._waiting.append(call)
        self._changed.set()
        return await call.answer

    async def close(self) -> None:
        """Answer everything that waits, then stop."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while batch := await self._gather():
            self.items += len(batch)
            self.batches += 1
            answers = await self._answers(batch)
            for call, answer in zip(batch, answers, strict=True):
                if call.answer.done():  # its caller was cancelled meanwhile
                    continue
                if isinstance(answer, Exception):
                    call.answer.set_exception(answer)
                else:
                    call.answer.set_result(answer)

    async def _gather(self) -> list[_Call[Item, Answer]]:
        """Wait for the next batch; an empty one means that nothing is left and nothing will come."""
        while True:
            self._waiting = deque(call for call in self._waiting if not call.answer.done())
            if self._waiting:
                deadline = self._waiting[0].arrived + self._wait_s
                full = len(self._waiting) >= self._batch_size
                if full or self._closing or asyncio.get_running_loop().time() >= deadline:
                    return [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            elif self._closing:
                return []
            else:
                deadline = None
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _answers(self, batch: Sequence[_Call[Item, Answer]]) -> Sequence[Answer | Exception]:
        """Run a batch; one that fails as a whole is run again item by item, so that only the culprit is told."""
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._executor, self._run, [call.item for call in batch])
            if len(answers) == len(batch):
                return answers
            failure: Exception = RuntimeError(f"a batch of {len(batch)} items got {len(answers)} answers")
        except Exception as error:  # whatever the model raises belongs to the callers; the worker must live on
            failure = error
        if len(batch) == 1:
            return [failure]
        return [answer for call in batch for answer in await self._answers([call])]
