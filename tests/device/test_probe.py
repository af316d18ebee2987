import subprocess
import sys

import psutil
import torch

from martlet.device.probe import measure_ram_bandwidth, probe_cpu, probe_gpus, probe_ram


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_a_control_group_the_host_counts(tmp_path):
    ram = probe_ram(tmp_path)

    assert ram.total_bytes == psutil.virtual_memory().total
    assert ram.limit_bytes is None
    assert 0 < ram.available_bytes <= ram.total_bytes


def test_a_limit_of_a_version_2_group_lowers_total_and_available(tmp_path):
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/app/worker\n",
            "sys/fs/cgroup/app/worker/memory.max": "max\n",
            "sys/fs/cgroup/app/worker/memory.current": "1000\n",
            "sys/fs/cgroup/app/memory.max": "100000000\n",
            "sys/fs/cgroup/app/memory.current": "70000000\n",
            "sys/fs/cgroup/app/memory.stat": "anon 5\nactive_file 15000000\n"
            "inactive_file 5000000\n",
        },
    )
    ram = probe_ram(tmp_path)

    assert ram.total_bytes == ram.limit_bytes == 100_000_000
    assert ram.available_bytes == 50_000_000  # file cache that can be dropped counts as free


def test_a_limit_of_a_version_1_group_is_found_at_the_root_of_the_mount(tmp_path):
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "80000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "90000000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
        },
    )
    ram = probe_ram(tmp_path)

    assert ram.total_bytes == 80_000_000
    assert ram.available_bytes == 0  # over the limit for a moment is not less than nothing


def test_a_limit_above_the_host_and_the_word_for_none_change_nothing(tmp_path):
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory.max": f"{psutil.virtual_memory().total * 2}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    assert probe_ram(tmp_path).limit_bytes is None


def test_the_cpu_has_a_name_and_a_quota_lowers_its_cores(tmp_path):
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Little Core 5\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
        },
    )
    cpu = probe_cpu(tmp_path)

    assert cpu.name == "Little Core 5"
    assert cpu.num_cores == 1  # half a core is one thread


def test_without_a_quota_the_cores_of_this_process_count(tmp_path):
    _write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert probe_cpu(tmp_path).num_cores == len(psutil.Process().cpu_affinity())


def test_gpus_are_those_of_torch():
    assert len(probe_gpus()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_the_bandwidth_is_that_of_a_memory():
    # Between a slow SD card and a rack of HBM: catches a wrong unit, not a slow machine.
    assert 1e8 < measure_ram_bandwidth(16 << 20, seconds=0.02) < 1e13


def test_probing_ram_and_cpu_loads_no_torch():
    code = (
        "import sys; from martlet.device import probe; probe.probe_ram(); probe.probe_cpu();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
