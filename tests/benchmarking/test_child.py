"""A child answers, fails and dies; its cores and its peak of memory are its own."""

import mmap
import os

import pytest

from vision_tutorial.benchmarking.child import in_child, peak_memory
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.processes import usable_cores


def add(a, b):
    print("not on stdout")
    return a + b, os.getpid()


def refuse():
    raise UserError("no such thing")


def fail():
    raise KeyError("missing")


def die():
    os._exit(7)


def grow():
    before = peak_memory()
    # straight from the system: what other tests gave back, malloc would hand out again
    with mmap.mmap(-1, 64 * 1024 * 1024) as block:
        for _ in range(64 * 1024):
            block.write(bytes(1024))
        return before, peak_memory(), len(block)


def test_a_child_answers_from_a_process_of_its_own(capfd):
    answer, process = in_child(add, 2, 3)
    assert answer == 5 and process != os.getpid()
    out, err = capfd.readouterr()
    assert out == "" and err == "not on stdout\n"


def test_errors_come_through():
    with pytest.raises(UserError, match="no such thing"):
        in_child(refuse)
    with pytest.raises(KeyError, match="missing"):
        in_child(fail)
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        in_child(die)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_child_keeps_to_its_cores_and_the_parent_to_its_own():
    ours = usable_cores()
    assert in_child(usable_cores, cores=ours[-1:]) == ours[-1:]
    assert in_child(usable_cores) == usable_cores() == ours


def test_the_peak_is_the_childs_own():
    before, peak, size = in_child(grow)  # both from one child: the parent's own size may change
    assert 0.9 * size < peak - before < 1.5 * size
