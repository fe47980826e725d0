"""One pass over files: in order, in bounded memory, each equal content kept once."""

import threading

import numpy as np
import pytest
from data_sets import draw

from transferkit.data.images import reading
from transferkit.data.images.decode import decode_image
from transferkit.data.images.reading import read_images
from transferkit.data.pixels.memory import MemoryPixels


def test_results_are_in_order_for_any_number_of_workers(pets):
    paths = [str(path) for path in sorted(pets.rglob("*.bmp"), reverse=True)] + [str(pets / "gone.bmp")]
    one, four = (read_images(paths, min_side=None, keep=MemoryPixels(10**9).put, workers=workers) for workers in (1, 4))
    assert one == four and [result.path for result in one] == paths
    for result, other in zip(one[:-1], four, strict=False):
        np.testing.assert_array_equal(result.pixels, decode_image(result.path))
        np.testing.assert_array_equal(result.pixels, other.pixels)
        assert (result.info.width, result.info.height, result.error) == (20, 16, None)
    assert (one[-1].sha256, one[-1].pixels, one[-1].error) == (None, None, "No such file or directory")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_budget_is_spent_in_input_order(tmp_path, workers):
    sizes = [(10, 10), (50, 50), (10, 10), (10, 10), (10, 10)]
    paths = [str(draw(tmp_path / f"{n}.bmp", n, size)) for n, size in enumerate(sizes)]
    keep = MemoryPixels(3 * 301).put  # a byte besides the pixels of each
    in_memory = [r.pixels is not None for r in read_images(paths, min_side=None, keep=keep, workers=workers)]
    assert in_memory == [True, False, True, True, False]
    assert all(r.pixels is None for r in read_images(paths, min_side=None, workers=workers))


def test_equal_files_are_kept_once(tmp_path):
    first = draw(tmp_path / "a.bmp", 1, (10, 10))
    (tmp_path / "b.bmp").write_bytes(first.read_bytes())
    a, b = read_images([str(first), str(tmp_path / "b.bmp")], min_side=None, keep=MemoryPixels(301).put)
    assert np.shares_memory(a.pixels, b.pixels)


def test_memory_is_bounded(tmp_path, monkeypatch):
    paths = [str(draw(tmp_path / f"{n}.bmp", n)) for n in range(40)]
    started, lock, worst, done = [0], threading.Lock(), [0], [0]
    read = reading.read_bytes

    def counting(path):
        with lock:
            started[0] += 1
            worst[0] = max(worst[0], started[0] - done[0])
        return read(path)

    def progress(count):
        with lock:
            done[0] = count

    monkeypatch.setattr(reading, "read_bytes", counting)
    read_images(paths, min_side=None, workers=3, progress=progress)
    assert done[0] == 40 and worst[0] <= 2 * 3 + 1


def test_an_interrupt_stops_the_pool(tmp_path):
    paths = [str(draw(tmp_path / f"{n}.bmp", n)) for n in range(30)]

    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_images(paths, min_side=None, workers=2, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
