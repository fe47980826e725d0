"""Mutated picture files of every format: pictures or refused; no crash, hang, excess of memory or other error."""

import pytest
from picture_fuzzer import fuzz, mutated, seeds


def test_a_few():
    outcome = fuzz(0, 300)
    assert outcome.faults == []
    assert outcome.read + outcome.refused.total() == 300
    assert outcome.read >= 60 and outcome.refused.total() >= 100, "neither spares nor destroys them"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand():
    outcome = fuzz(0, 20_000)
    print(f"{outcome.read:,} read, {outcome.refused.total():,} refused", outcome.refused.most_common(30))
    assert outcome.faults == []
    assert outcome.read + outcome.refused.total() == 20_000
    assert {suffix for suffix, _ in outcome.by_format} >= {"avif", "bmp", "gif", "heic", "jpg", "png", "tif", "webp"}


def test_files_are_the_same_each_time():
    assert [mutated(number) for number in range(20)] == [mutated(number) for number in range(20)]
    assert len({mutated(number)[1] for number in range(20)}) == 20
    whole = dict(seeds())
    changed = sum(mutated(number)[1] != whole[mutated(number)[0]] for number in range(200))
    assert changed >= 180  # two equal parts may have changed places


SABOTAGE = {
    "crash": ("os.kill(os.getpid(), 11)", "the process ended by SIGSEGV"),
    "hang": ("while True: pass", "the process ended by SIGPROF"),
    "memory": ("hoard.append(b'x' * (700 << 20))", "MiB more memory"),
    "error": ("1 / 0", "BUG ZeroDivisionError"),
}

PRELUDE = """
import os
import transferkit.data.images.decode as decode
picture_fuzzer.LIMIT_S, real, third, hoard = {limit}, decode.decode_image, picture_fuzzer.mutated(2)[1], []

def sabotaged(data, **options):
    if data == third:
        {code}
    return real(data, **options)

decode.decode_image = sabotaged
"""


@pytest.mark.parametrize("kind", SABOTAGE)
def test_the_fuzzer_sees_what_it_looks_for(kind):
    """Of four files the third does that to the decoder."""
    code, said = SABOTAGE[kind]
    outcome = fuzz(0, 4, prelude=PRELUDE.replace("{code}", code).replace("{limit}", "1" if kind == "hang" else "60"))
    assert len(outcome.faults) == 1 and said in outcome.faults[0] and outcome.faults[0].startswith("file 2 (")
    assert outcome.read + outcome.refused.total() == 3
