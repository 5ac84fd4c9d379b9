"""What `bench` measures: each `measure_…` returns pairs, and further facts by name."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import build
from ..core.atomic import read_json
from ..core.errors import UserError, counted
from ..core.processes import Ended, last_line, run_command, usable_cores
from ..core.task import Batch
from ..recipe.fields import Recipe
from ..recipe.loading import load
from ..recipe.recipe_info import batch_parts
from ..runs import run_folder
from ..sweeps.children import training
from . import timm_baseline
from .bare_loop import ENDLESS, FAR, TimedTraining, bare_forward, bare_steps, placed
from .child import in_child, peak_memory
from .timed_pairs import Measurement, drawn, in_turn, pair, timed_once

_PASS = 5  # an evaluation lasts so many times --seconds, if there are images enough
_MOST_STARTS = 3  # pairs of whole processes; each takes the seconds of an import
_EPOCHS = 3  # of a scaling run; the first warms up
_SMALL_SPLIT = 200  # images that a scaling run evaluates on, so that it ends soon
_Found = tuple[list[dict[str, Any]], dict[str, Any]]


class Bench:
    """What all measurements of one bench share; it travels into child processes."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        """args: of the command `bench`. folder: of run folders, gone at the end."""
        self.args, self.folder = args, folder
        self.rounds, self.seconds = args.rounds, args.seconds

    def recipe(self, *more: str) -> Recipe:
        """The recipe with some more values set, ready to be built in this process."""
        loaded = load(self.args.recipe, [*self.args.overrides, *more])
        build.import_files(loaded.imports, self.args.trust_imports)
        return loaded.recipe

    def timed(self, *more: str) -> TimedTraining:
        """A training of the recipe with some more values set."""
        recipe = self.recipe(*ENDLESS, *more)
        return TimedTraining(recipe, run_folder.new_run(self.folder, recipe.name), _tell)

    def command(
        self, name: str, words: Sequence[str], sign: Callable[[], bool] = lambda: False, ok: int = 0
    ) -> Ended:
        """Run a command; UserError unless it ends with the code `ok`."""
        log = self.folder / f"{name}.log"
        ended = run_command(words, log, sign)
        if ended.code != ok:
            raise UserError(f"{name} ended with code {ended.code}: {last_line(log)}")
        return ended

    def training(self, name: str, *more: str, processes: int = 1) -> list[str]:
        """The command that trains the recipe in the run folder `name`."""
        words = [self.args.recipe, *self.args.overrides, "wandb.mode=disabled", *more]
        words += ["--trust-imports"] * self.args.trust_imports
        words += ["--quiet", "--runs", str(self.folder), "--id", name]
        return training(words, processes)

    def compare(self, name: str, sides: Mapping[str, Callable], **about: Any) -> list[dict]:
        """Rates measured in turn: a pair of the first side and each of the others."""
        found = in_turn(list(sides.values()), self.rounds, lambda line: _tell(f"{name}: {line}"))
        ours, *others = zip(sides, found, strict=True)
        return [pair(name, "images/s", ours, other, **about) for other in others]


def _tell(line: str) -> None:
    """Progress on standard error; standard output holds only the result."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def measure_data(job: Bench) -> _Found:
    """The data path beside timm's loader and beside our own image by image."""
    every, pairs, reason = usable_cores(), [], ""
    for cores in [every[:1], every] if len(every) > 1 else [every]:
        found, reason = in_child(_data_rates, job, len(cores), cores=cores)
        pairs += found
    return pairs, {"no_timm_loader": reason}


def _data_rates(job: Bench, cores: int) -> tuple[list[dict[str, Any]], str]:
    """Our path beside timm's loader in both of its ways; why timm's are left out."""
    workers = cores if cores > 1 else 0
    recipe = job.recipe(f"threads={cores}", *["workers=0"] * (cores == 1))
    single = job.recipe(f"threads={cores}", f"workers={workers}", "data.path=timm")
    place = placed(recipe)
    source, device = build.data(recipe).train, place.device
    parts = batch_parts(recipe, 1, device.type == "cuda")

    def own(recipe: Recipe, skip: int) -> Measurement:
        steps = build.train_pipeline(recipe, source, place).train(0, FAR, parts)
        return drawn((sum(map(len, step)) for step in steps), job.seconds, skip)

    def timms(prefetcher: bool) -> Measurement:
        batches = timm_baseline.timm_batches(recipe, source, device, workers, prefetcher)
        return drawn(batches, job.seconds, 1 + workers)

    sides: dict[str, Callable] = {f"data path ({recipe.data.path})": partial(own, recipe, 1)}
    reason = timm_baseline.missing(recipe)
    if not reason:
        sides["timm's loader"] = partial(timms, False)
        sides["timm's, prefetcher"] = partial(timms, True)
    sides["image by image"] = partial(own, single, 1 + workers)
    pairs = job.compare(f"data, {counted(cores, 'core')}", sides, cores=cores)
    for made in pairs:
        made["about"]["per_core"] = made["ours"]["median"] / cores
    return pairs, reason


def _step(job: Bench) -> _Found:
    """The trainer beside the bare loop, and what an epoch needs beside its steps."""
    timed = job.timed()
    train, val = timed.splits.train, timed.splits.val
    bare = bare_steps(timed.recipe, len(train.classes), timed.first_batches(), timed.place)
    trainer, other = partial(timed.run, job.seconds), partial(drawn, bare, job.seconds)
    pairs = job.compare("step", {"trainer": trainer, "bare loop": other})
    _tell("step: checkpoints and rows")
    return pairs, {
        "train_images": len(train),
        "val_images": len(val),
        "micro_batches": timed.training.accumulation_steps,
        "data_share_of_step": statistics.median(timed.data_shares[1:]),
        "epoch_end_seconds": statistics.median(timed.epoch_ends(job.rounds)),
    }


def _evaluation(job: Bench) -> _Found:
    """The evaluation of a split beside the bare forward pass over as many images."""
    timed = job.timed()
    recipe, place, val = timed.recipe, timed.place, timed.splits.val
    first = build.eval_pipeline(recipe, val, place).first_evaluation()[0].images
    bare = partial(bare_forward, timed.training.model, place=place)
    for _ in range(2):  # the first warms up
        images, seconds = timed_once(partial(bare, [first]))
    size = recipe.eval_batch_size
    images = min(size * max(1, round(_PASS * job.seconds * images / seconds / size)), len(val))
    full, rest = divmod(images, len(first))
    batches = [first] * full + [first[:rest]] * bool(rest)
    evaluate = timed.evaluation(images)
    sides = {
        "evaluation": partial(timed_once, lambda: evaluate().images),
        "bare forward": partial(timed_once, partial(bare, batches)),
    }
    return job.compare("evaluation", sides, images=images), {}


measure_step = partial(in_child, _step)
measure_eval = partial(in_child, _evaluation)


def measure_timm(job: Bench) -> _Found:
    """Our trainer beside timm's train.py, both on timm's plain model: it has no CIFAR stem."""
    plain = f"model={job.recipe().model.name}"
    words, batch, reason = in_child(_timm_words, job, plain)
    if reason:
        return [], {"no_timm_train": reason}
    log = job.folder / "timm.log"

    def so_far() -> Measurement:
        return timm_baseline.rate_of_log(log.read_text("utf-8", "replace"), batch)

    def theirs() -> Measurement:
        ended = run_command(words, log, lambda: so_far().seconds >= job.seconds, then_stop=True)
        if not so_far().images:
            raise UserError(f"timm's train.py ended with code {ended.code}: {last_line(log)}")
        return so_far()

    sides = {"trainer": lambda: in_child(_trainer_rate, job, plain)[0], "timm's train.py": theirs}
    return job.compare("step, plain model", sides, command=words[1:]), {}


def _timm_words(job: Bench, plain: str) -> tuple[list[str], int, str]:
    """The command of train.py for the recipe, the images of its steps; or why there is none."""
    timed = job.timed(plain)
    recipe, source, parts = timed.recipe, timed.splits.train, timed.training.accumulation_steps
    try:
        words = timm_baseline.train_words(recipe, source, timed.place, parts, len(usable_cores()))
    except timm_baseline.Untranslatable as error:
        return [], 0, str(error)
    words += timm_baseline.data_words(recipe, source, job.folder / "images")
    script, output = map(str, (job.args.timm_train, job.folder / "timm"))
    return [sys.executable, script, *words, "--output", output], recipe.batch_size, ""


def _trainer_rate(job: Bench, *more: str) -> tuple[Measurement, int, int]:
    """The trainer's rate, the training images, and the GPUs there are."""
    timed = job.timed(*more)
    return timed.run(job.seconds), len(timed.splits.train), torch.cuda.device_count()


def measure_startup(job: Bench) -> _Found:
    """From the command to the first step, less reading the data; and the answer to a mistake.

    Both beside `python -c "import torch, torchvision, timm"`. The first step begins where the loop
    has its first batch: the moment when the checkpoint after that step begins to be written, less
    the seconds that the run's own state says the step took.
    """
    steps: list[float] = []
    reading = in_child(_reading, job)

    def trained() -> float:
        name = f"start-{len(steps)}"
        saved = job.folder / job.recipe().name / name / "ckpt"
        words = job.training(name, "--steps", "1")
        ended = job.command(name, words, lambda: saved.is_dir() and any(saved.iterdir()))
        (state,) = saved.glob("*/state.json")
        progress = read_json(state)["progress"]
        steps.append(progress["seconds"] - progress["seconds_data"])
        return (ended.seen or ended.seconds) - steps[-1] - reading

    def imported() -> float:
        words = [sys.executable, "-c", "import torch, torchvision, timm"]
        return job.command("imports", words).seconds

    def refused() -> float:
        return job.command("refused", job.training("refused", "loss=focl"), ok=2).seconds

    rounds, sides = min(job.rounds, _MOST_STARTS), [trained, imported, refused]
    start, imports, mistake = in_turn(sides, rounds, lambda line: _tell(f"startup: {line}"))
    beside = ("import torch, timm", imports)
    about = {"data_seconds": reading, "first_step_seconds": statistics.median(steps)}
    return [
        pair("to the first step", "s", ("command, less the data", start), beside, **about),
        pair("a mistake's answer", "s", ("command", mistake), beside),
    ], {}


def _reading(job: Bench) -> float:
    recipe, began = job.recipe(), time.perf_counter()
    build.data(recipe).train.digest()
    return time.perf_counter() - began


def measure_memory(job: Bench) -> _Found:
    """The trainer's peak beside that of the bare loop in a process without the data set."""
    _tell("memory: the trainer, the bare loop")
    batches = job.folder / "batches.pt"
    trainer, held, classes = in_child(_trainer_peaks, job, batches)
    bare = in_child(_bare_peaks, job, batches, classes)
    pairs = []
    for name, size in (("main memory", held), ("GPU memory", 0)):
        if trainer[name] and bare[name]:
            sides = ("trainer", [trainer[name]]), ("bare loop + data", [bare[name] + size])
            pairs.append(pair(name, "bytes", *sides, data_bytes=size))
    return pairs, {}


def _trainer_peaks(job: Bench, batches: Path) -> tuple[dict[str, int | None], int, int]:
    """Its peaks with a checkpoint, the images' bytes, the classes; writes a step's `batches`."""
    timed = job.timed()
    timed.run(job.seconds)
    timed.recorder.save(timed.progress)
    timed.recorder.catch_up()
    peaks, train = _peaks(), timed.splits.train
    torch.save([(b.images, b.target) for b in timed.first_batches()], batches)
    return peaks, timm_baseline.held((train, timed.splits.val)), len(train.classes)


def _bare_peaks(job: Bench, batches: Path, classes: int) -> dict[str, int | None]:
    recipe = job.recipe()
    place = placed(recipe)
    ready = [Batch(*tensors) for tensors in torch.load(batches, place.device, weights_only=True)]
    drawn(bare_steps(recipe, classes, ready, place), job.seconds)
    return _peaks()


def _peaks() -> dict[str, int | None]:
    """Bytes at most in this process."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"main memory": peak_memory(), "GPU memory": gpu}


def measure_scaling(job: Bench) -> _Found:
    """Two processes beside one, by the images/s of their own metrics.jsonl.

    With a GPU for each, twice as much is expected; else both share the same cores.
    """
    sample, images, gpus = in_child(_trainer_rate, job)
    if gpus == 1:
        return [], {"no_scaling": "there is one GPU"}
    recipe = job.recipe()
    batch = recipe.batch_size
    holdout = min(0.1, _SMALL_SPLIT / images)
    most = (int((1 - holdout) * images) - 1) // batch
    steps = max(1, min(round(job.seconds * sample.images / sample.seconds / batch), most))
    small = [f"epochs={_EPOCHS}", f"eval_every={_EPOCHS}", "warmup={}", "cooldown={}"]
    small += [f"holdout={holdout}", f"subset={steps * batch}", "checkpoint.every_minutes=null"]
    names: list[str] = []

    def trained(processes: int) -> Measurement:
        names.append(f"scaling-{len(names)}")
        job.command(names[-1], job.training(names[-1], *small, processes=processes))
        rows = run_folder.read_rows(job.folder / recipe.name / names[-1] / "metrics.jsonl")[1:]
        devices = processes if gpus else 1  # the rate is that of each device
        return Measurement(steps * batch * len(rows), devices * sum(row["seconds"] for row in rows))

    what = "2 processes, each" if gpus else "2 processes"
    sides = {what: partial(trained, 2), "1 process": partial(trained, 1)}
    return job.compare("scaling", sides, steps=steps, batch_size=batch), {}
