"""How many files of ours one training step of r4 executes: what a reader has to follow."""

import subprocess
import sys

MOST = 15

STEP = """
import sys
from pathlib import Path

import vision_tutorial
from vision_tutorial import build
from vision_tutorial.engine import Distributed, Progress, StopRequest, fit
from vision_tutorial.engine.loop import Recorder
from vision_tutorial.recipe.loading import load

words = ["dataset={shapes: {size: 16, train: 4096, test: 16}}", "model={test_resnet: {}}"]
recipe = load("recipes/r4.yaml", [*words, "batch_size=2048", "threads=1", "workers=0"]).recipe
distributed = Distributed(threads=1)
both = build.data(recipe)
training = build.training_state(recipe, both.train, distributed)
plan = build.plan(recipe, both, training, distributed)
files = set()


class Traced(Recorder):
    steps = 0

    def stepped(self, *given):
        self.steps += 1  # the batch that the second step takes is augmented in it
        sys.setprofile(
            (lambda frame, *_: files.add(frame.f_code.co_filename)) if self.steps == 1 else None
        )


plan = __import__("dataclasses").replace(plan, steps_per_epoch=4)
fit(training, plan, Traced(), Progress(), StopRequest(steps=2))
package = Path(vision_tutorial.__file__).parent
print(*sorted(str(Path(f).relative_to(package)) for f in files if f.startswith(str(package))))
"""


def test_a_training_step_crosses_few_files() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert {"engine/loop.py", "data/pipeline.py", "data/augmentation/policies.py"} <= set(files)
    assert len(files) <= MOST, "\n".join(files)
    assert not any("preview" in name or "benchmark" in name for name in files)
