"""Batches of calls: who waits for whom, whose error is whose, and how it ends."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("anyio", reason="anyio, which runs these tests in an event loop, is not installed")

from transferkit.results.serve.batching import Batcher, BatcherClosed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@asynccontextmanager
async def batcher_of(run, *, batch_size=8, wait_s=0.0):
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(run, batch_size=batch_size, wait_s=wait_s, executor=executor)
        try:
            yield batcher
        finally:
            await batcher.close()


class Squares:
    """Squares numbers, and keeps what it was given; `gate` holds it back until it is set."""

    def __init__(self, gated=False):
        self.batches = []
        self.began = threading.Event()
        self.gate = threading.Event()
        if not gated:
            self.gate.set()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.began.set()
        assert self.gate.wait(10)
        return [number * number for number in numbers]


async def began(squares):
    while not squares.began.is_set():
        await asyncio.sleep(0.001)


async def test_every_caller_gets_its_own_answer():
    squares = Squares()

    async def ask(number):
        await asyncio.sleep(number % 7 / 1000)
        return await batcher.submit(number)

    async with batcher_of(squares, wait_s=0.002) as batcher:
        assert await asyncio.gather(*map(ask, range(200))) == [number * number for number in range(200)]
        assert batcher.items == 200
        assert batcher.batches == len(squares.batches)
    assert sorted(number for batch in squares.batches for number in batch) == list(range(200))
    assert 1 < max(map(len, squares.batches)) <= 8


async def test_a_full_batch_does_not_wait():
    squares = Squares()
    async with batcher_of(squares, batch_size=4, wait_s=3600.0) as batcher, asyncio.timeout(10):
        assert await asyncio.gather(*map(batcher.submit, range(8))) == [0, 1, 4, 9, 16, 25, 36, 49]
    assert squares.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_a_lone_item_waits_no_longer_than_asked():
    squares = Squares()
    loop = asyncio.get_running_loop()
    async with batcher_of(squares, wait_s=0.05) as batcher, asyncio.timeout(10):
        started = loop.time()
        first = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.01)
        assert not squares.batches
        assert await asyncio.gather(first, batcher.submit(4)) == [9, 16]
        assert loop.time() - started >= 0.05
    assert squares.batches == [[3, 4]]  # the second came in time to keep the first company


async def test_the_next_batch_gathers_while_one_runs():
    squares = Squares(gated=True)
    async with batcher_of(squares, batch_size=4) as batcher:
        first = asyncio.create_task(batcher.submit(0))
        await began(squares)
        others = [asyncio.create_task(batcher.submit(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.01)
        squares.gate.set()
        assert await asyncio.gather(first, *others) == [0, 1, 4, 9]
    assert squares.batches == [[0], [1, 2, 3]]


async def test_an_answer_that_is_an_error_is_one_callers():
    def run(numbers):
        return [ValueError(f"odd: {number}") if number % 2 else number for number in numbers]

    async with batcher_of(run, wait_s=0.01) as batcher:
        answers = await asyncio.gather(*map(batcher.submit, range(6)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["0", "odd: 1", "2", "odd: 3", "4", "odd: 5"]
    assert isinstance(answers[1], ValueError)


async def test_a_batch_that_fails_is_run_again_one_by_one():
    batches = []

    def run(numbers):
        batches.append(list(numbers))
        if 2 in numbers:
            raise ArithmeticError("no two")
        return numbers

    async with batcher_of(run, wait_s=0.01) as batcher:
        answers = await asyncio.gather(*map(batcher.submit, range(4)), return_exceptions=True)
        assert await batcher.submit(5) == 5  # and the worker lives on
    assert (answers[0], answers[1], answers[3]) == (0, 1, 3)
    assert isinstance(answers[2], ArithmeticError)
    assert batches == [[0, 1, 2, 3], [0], [1], [2], [3], [5]]


async def test_too_few_answers_reach_nobody_as_someone_elses():
    async with batcher_of(lambda numbers: numbers[1:], wait_s=0.01) as batcher:
        answers = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["a batch of 1 items got 0 answers"] * 3


async def test_a_cancelled_caller_leaves_the_others_alone():
    squares = Squares(gated=True)
    async with batcher_of(squares, batch_size=4, wait_s=0.02) as batcher:
        running = [asyncio.create_task(batcher.submit(number)) for number in (0, 1)]
        await began(squares)
        waiting = [asyncio.create_task(batcher.submit(number)) for number in (2, 3)]
        await asyncio.sleep(0.001)
        for gone in (running[0], waiting[0]):
            gone.cancel()
        await asyncio.sleep(0.001)
        squares.gate.set()
        answers = await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert [answers[1], answers[3]] == [1, 9]
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert squares.batches == [[0, 1], [3]]  # who left before the model's turn costs it nothing


async def test_closing_answers_what_waits_and_takes_no_more():
    squares = Squares(gated=True)
    async with batcher_of(squares, batch_size=2, wait_s=3600.0) as batcher, asyncio.timeout(10):
        calls = [asyncio.create_task(batcher.submit(number)) for number in range(5)]
        await began(squares)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.001)
        with pytest.raises(BatcherClosed):
            await batcher.submit(9)
        squares.gate.set()
        await closing
        assert [call.result() for call in calls] == [0, 1, 4, 9, 16]
    assert squares.batches == [[0, 1], [2, 3], [4]]
