"""The stop-watch: what it counts and what it leaves out."""

import pytest
import torch
from torch import nn

from vision_tutorial.benchmarking import bare_loop
from vision_tutorial.benchmarking.bare_loop import BareLoop, Until, Watch, bare_forward, seen_by
from vision_tutorial.core.task import Batch
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.loop import Progress


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where the test says so."""
    now = [100.0]
    monkeypatch.setattr(bare_loop.time, "perf_counter", lambda: now[0])
    return now


class Slow:
    """Duties that take their time."""

    def __init__(self, clock):
        self.clock = clock

    def stepped(self, progress, loss, lr, items):
        self.clock[0] += 0.125

    def save(self, progress, is_best):
        self.clock[0] += 8.0

    def finished_epoch(self, progress):
        self.clock[0] += 4.0


def test_steps_are_counted_and_ends_of_epochs_left_out(clock):
    settled = []
    watch = Watch(Slow(clock), lambda: settled.append(clock[0]))
    progress = Progress()
    for step in range(4):
        clock[0] += 1.0
        progress.seconds_data += 0.25
        watch.stepped(progress, 0.1, 0.1, 8)
        if step == 1:
            progress.seconds_data = 0.0  # a new epoch
            watch.save(progress, False)
            watch.finished_epoch(progress)
    assert watch.steps == [1.125] * 4
    assert watch.waits == [0.25] * 4
    assert watch.busy == 4 * 0.125 + 12.0
    assert settled == [101.125]  # once, before the first step that counts


def test_it_asks_to_stop_when_the_time_is_about_over(clock):
    watch = Watch(Slow(clock), lambda: None)
    until = Until(watch, 3.0)
    asked = []
    for step in range(5):
        asked.append(until.asked(step))
        clock[0] += 0.875
        watch.stepped(Progress(), 0.1, 0.1, 8)
        if asked[-1]:
            break
    assert asked == [False, False, False, True] and watch.final
    assert sum(watch.steps[bare_loop.SKIP :]) == 3.0
    watch.start()
    assert not Until(watch, 0.001).asked(0), "one step counts at least"


def test_the_bare_loop_takes_the_steps_that_plain_torch_takes():
    generator = torch.Generator().manual_seed(3)
    images, target = torch.randn(8, 6, generator=generator), torch.arange(8) % 3
    batches = [Batch(images[:4], target[:4]), Batch(images[4:], target[4:])]
    model, twin = nn.Linear(6, 3), nn.Linear(6, 3)
    twin.load_state_dict(model.state_dict())
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
    place, criterion = Distributed(), nn.functional.cross_entropy
    loop = BareLoop(model, ours, lambda x, y: (criterion(x, y), {}), batches, place)
    sample = loop.run(seconds=1e-9)
    place.close()
    assert sample.images == 8 and sample.seconds > 0
    for _ in range(bare_loop.SKIP + 1):
        theirs.zero_grad()
        criterion(twin(images), target).backward()
        theirs.step()
    assert torch.allclose(model.weight, twin.weight, atol=1e-6)


def test_the_bare_forward_pass_counts_images_and_leaves_the_mode():
    model, place = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(6, 3)).train(), Distributed()
    with seen_by(model) as seen:
        sample = bare_forward(model, [torch.zeros(4, 6), torch.zeros(2, 6)], place)
    place.close()
    assert sample.images == 6 and sample.seconds > 0 and model.training
    assert [len(images) for images in seen] == [4, 2]
    model(torch.zeros(1, 6))
    assert len(seen) == 2  # only meanwhile
