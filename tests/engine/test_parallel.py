"""The thread pool where the system gives no more threads, and in forked processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diff_gaussian_rasterization.image", reason="the native package is not installed")
resource = pytest.importorskip("resource", reason="no limits on this system")

ENGINE = Path(__file__).resolve().parents[2] / "submodules" / "diff-gaussian-rasterization" / "csrc"

PROGRAM = """
import os, resource, torch
from diff_gaussian_rasterization.image import l1_ssim
image, target = torch.rand(3, 2000, 64), torch.rand(3, 2000, 64)
alone = l1_ssim(image, target, threads=1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)  # room for a few stacks of 8 MiB
assert l1_ssim(image, target, threads=100) == alone
assert len(os.listdir("/proc/self/task")) < 100
"""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer gives up without a thread")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_threads_that_cannot_be_had_are_done_without() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


FORKING = """
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "parallel.h"

int main() {
    std::atomic<bool> stop{false};
    const auto work = [&] {
        while (!stop) mien::parallel_for(2, 2, [](int64_t, int) {});
    };
    std::thread one(work), other(work);
    int failed = 0;
    for (int i = 0; i < 400 && failed == 0; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(5);
            std::atomic<int> done{0};
            mien::parallel_for(2, 2, [&](int64_t, int) { ++done; });
            _exit(done == 2 ? 0 : 1);
        }
        waitpid(child, &failed, 0);
    }
    stop = true;
    one.join(), other.join();
    return failed != 0;
}
"""


def test_a_fork_while_other_threads_are_at_work_leaves_a_pool_that_works(tmp_path: Path) -> None:
    """A child that is made while another thread looks for the pool must not find its lock closed for good."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler: {compiler} is not on the PATH (set CXX)")
    source, program = tmp_path / "forking.cpp", str(tmp_path / "forking")
    source.write_text(FORKING)
    files = (str(source), str(ENGINE / "parallel.cpp"))
    subprocess.run([compiler, "-std=c++17", "-O1", "-pthread", f"-I{ENGINE}", *files, "-o", program], check=True)
    assert subprocess.run([program], timeout=120).returncode == 0
