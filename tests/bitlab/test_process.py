"""Settings of the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from bitlab.process import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), max(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns freed memory")
def test_freed_memory_is_not_mapped_again():
    first, later = map(int, subprocess.check_output([sys.executable, "-c", FAULTS]).split())
    assert later < max(first, 1000) / 10
