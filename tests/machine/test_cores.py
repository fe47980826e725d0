"""Cores and memory as a container sees them: limits of control groups, page cache that counts as free."""

import os

import pytest

from transferkit.machine.cores import available_cores, free_memory

GIB = 2**30
MEMINFO = f"MemTotal: {32 * 1024**2} kB\nMemFree: 8 kB\nMemAvailable: {16 * 1024**2} kB\n"


@pytest.fixture
def system(tmp_path):
    """Writes files of a feigned system, by path; gives its root."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return tmp_path

    return write


V2 = {"proc/self/cgroup": "0::/box/inner\n", "proc/meminfo": MEMINFO}
V1 = {"proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n", "proc/meminfo": MEMINFO}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": MEMINFO}, 16 * GIB),  # no groups; nearly all of the memory is page cache
        ({**V2, "sys/fs/cgroup/box/inner/memory.max": "max\n"}, 16 * GIB),
        # 4 GiB less the 3 taken, of which 1 holds pages of files.
        ({**V2, "sys/fs/cgroup/box/inner/memory.max": f"{4 * GIB}\n",
          "sys/fs/cgroup/box/inner/memory.current": f"{3 * GIB}\n",
          "sys/fs/cgroup/box/inner/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n"}, 2 * GIB),
        # The limit of a group around it.
        ({**V2, "sys/fs/cgroup/box/memory.max": f"{GIB}\n", "sys/fs/cgroup/box/memory.current": "0\n"}, GIB),
        # A container that sees itself as the top.
        ({**V2, "sys/fs/cgroup/memory.max": f"{GIB}\n", "sys/fs/cgroup/memory.current": f"{GIB // 2}\n"}, GIB // 2),
        ({**V2, "sys/fs/cgroup/memory.max": f"{GIB}\n", "sys/fs/cgroup/memory.current": f"{2 * GIB}\n"}, 0),
        ({**V1, "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
          "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{2 * GIB}\n",
          "sys/fs/cgroup/memory/box/memory.stat": f"cache 5\ntotal_inactive_file {GIB}\n"}, GIB),
        ({**V1, "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n"}, 16 * GIB),
        ({**V1, "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "garbage\n"}, 16 * GIB),
    ],
)  # fmt: skip
def test_free_memory(system, files, expected):  # fault 104
    assert free_memory(system(files)) == expected


def test_free_memory_without_proc_is_what_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 2_000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_memory(tmp_path) == 2_000 * 4096

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert free_memory(tmp_path) == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({**V2, "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n"}, 8),
        ({**V2, "sys/fs/cgroup/box/inner/cpu.max": "150000 100000\n"}, 2),
        ({**V2, "sys/fs/cgroup/box/cpu.max": "300000 100000\n", "sys/fs/cgroup/cpu.max": "900000 100000\n"}, 3),
        ({**V2, "sys/fs/cgroup/box/inner/cpu.max": "1000 100000\n"}, 1),
        ({**V1, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n"}, 2),
        ({**V1, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)  # fmt: skip
def test_cores(system, monkeypatch, files, expected):  # fault 104
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cores(system(files)) == expected
