"""How fast a recipe runs here, and beside what: every claim is a ratio of two sides in one run."""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..benchmarking import timm_baseline
from ..benchmarking.result import print_result, read_result, report
from ..benchmarking.startup import Job, beside_timm, scaling, startup, tell
from ..benchmarking.timed_pairs import Pair, Sample, Side, drawn
from ..core.cli_types import positive, positive_count
from ..core.errors import UserError, run_main, unknown
from ..core.processes import in_child, peak_memory, usable_cores
from ..recipe.fields import Recipe
from ..runs import run_folder

_FAR = 10**9  # a step that no measurement reaches
_ENDLESS = ("epochs=1000000", f"eval_every={_FAR}", "checkpoint.every_minutes=null")
_PASS = 5  # an evaluation lasts so many times --seconds, if there are images enough
_PEAKS = ("main memory", "GPU memory")
_Found = tuple[list[Pair], dict[str, Any]]  # what was measured, and what else came to light


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial bench",
        description="How fast a recipe runs on this machine. The two sides of each comparison "
        "take turns in one run; printed are the median of their ratio, its least and its most.",
        epilog="Measurements: "
        + "; ".join(f"{name}: {what}" for name, (_, what) in STAGES.items())
        + ". Leave the machine alone meanwhile: whatever else runs shows in the spread.",
    )
    add = made.add_argument
    add("recipe", help="a recipe (file or name), or the JSON of an earlier bench")
    add("overrides", nargs="*", metavar="key.sub=value", help="set one value of the recipe")
    add("--only", metavar="LIST", help=f"some of {','.join(STAGES)} (default: all)")
    add(
        "--rounds", type=positive_count, default=5, metavar="N", help="pairs (default: %(default)s)"
    )
    add("--seconds", type=positive, default=2.0, metavar="S", help="for each side (default: 2)")
    add("--timm-train", type=Path, metavar="PATH", help="timm's train.py, to measure beside it")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial bench`."""
    args = parser().parse_intermixed_args(argv)
    return run_main(lambda: bench(args))


def bench(args: argparse.Namespace) -> int:
    """Measure, or read what was measured, and print."""
    result = read_result(args.recipe) if args.recipe.endswith(".json") else _measured(args)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result, args.markdown)
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    stages = _stages(args)
    given = (args.recipe, tuple(args.overrides), args.trust_imports, args.rounds, args.seconds)
    Job(*given, Path()).load()  # a mistake is reported before torch is imported
    # asking whether there is a GPU must not start CUDA here: children could not share it
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    tell("importing torch and timm")
    from .. import build

    began = time.perf_counter()
    pairs: list[Pair] = []
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vision-tutorial-bench-") as folder:
        job = Job(*given, Path(folder), args.timm_train)
        build.check(_here(job))  # and so import what children will need
        for name in stages:
            measured, more = STAGES[name][0](job)
            pairs += measured
            facts |= more
    return report(job, pairs, facts, time.perf_counter() - began)


def _stages(args: argparse.Namespace) -> list[str]:
    script = args.timm_train
    if script is not None and not script.is_file():
        raise UserError(f"--timm-train {script}: no such file; give the path of timm's train.py.")
    asked = [name for name in (args.only or "").split(",") if name]
    for name in asked:
        if name not in STAGES:
            raise UserError(f"--only: {unknown('measurement', name, STAGES)}")
    if "timm" in asked and script is None:
        raise UserError("--only timm: name timm's train.py too: --timm-train PATH.")
    asked = asked or [name for name in STAGES if name != "timm" or script]
    return [name for name in STAGES if name in asked]


def _here(job: Job, *more: str) -> Recipe:
    """The recipe with some values set, ready to be built in this process."""
    from .. import build

    loaded = job.load(*more)
    build.import_files(loaded.imports, job.trusted)
    return loaded.recipe


def _data(job: Job) -> _Found:
    every = usable_cores()
    pairs = []
    for cores in [every[:1], every] if len(every) > 1 else [every]:
        (ours, *others), reason = in_child(_data_rates, job, len(cores), cores=cores)
        about = {"cores": len(cores), "per_core": statistics.median(ours.values) / len(cores)}
        name = f"data, {len(cores)} core{'s' * (len(cores) > 1)}"
        pairs += [Pair(name, "images/s", ours, other, about) for other in others]
    return pairs, {"no_timm_loader": reason}


def _data_rates(job: Job, cores: int) -> tuple[list[Side], str]:
    """Our path, timm's loader in both of its ways, ours by image; why timm's are left out."""
    from .. import build, engine
    from ..benchmarking import bare_loop

    workers = cores if cores > 1 else 0
    recipe = _here(job, f"threads={cores}", *(["workers=0"] if cores == 1 else []))
    single = _here(job, f"threads={cores}", f"workers={workers}", "data.path=timm")
    distributed = engine.Distributed(recipe.precision, recipe.threads, recipe.deterministic)
    source = build.data(recipe).train
    settle = bare_loop.settler(distributed.device)

    def own(recipe: Recipe, skip: int) -> Callable[[], Sample]:
        training = build.training_state(recipe, source, distributed)

        def rate() -> Sample:
            pipeline = build.train_pipeline(recipe, source, distributed)
            batches = pipeline.train(0, _FAR, training.accumulation_steps)
            counts = (sum(map(len, parts)) for parts in batches)
            return drawn(counts, job.seconds, skip, settle)

        return rate

    def timms(prefetcher: bool) -> Callable[[], Sample]:
        given = (recipe, source, distributed.device, workers, prefetcher)
        batches = timm_baseline.timm_batches
        return lambda: drawn(batches(*given), job.seconds, 1 + workers, settle)

    sides = {f"data path ({recipe.data.path})": own(recipe, 1)}
    reason = timm_baseline.missing(recipe)
    if not reason:
        sides |= {"timm's loader": timms(False), "timm's, prefetcher": timms(True)}
    sides["image by image"] = own(single, 1 + workers)
    found = job.in_turn(f"data, {cores} core(s)", list(sides.values()))
    return [Side.rates(*side) for side in zip(sides, found, strict=True)], reason


class _Setup:
    """A training built as `train` builds it, whose loop runs for some seconds at a time."""

    def __init__(self, job: Job, *more: str):
        from .. import build, engine
        from ..benchmarking import bare_loop

        self.job, self.recipe = job, _here(job, *_ENDLESS, *more)
        recipe = self.recipe
        self.place = engine.Distributed(recipe.precision, recipe.threads, recipe.deterministic)
        self.both = build.data(recipe)
        self.training = build.training_state(recipe, self.both.train, self.place)
        self.plan = build.plan(recipe, self.both, self.training, self.place)
        if notice := engine.fit_memory(self.training, self.plan):
            tell(notice)
        run = run_folder.new_run(job.folder, recipe.name)
        given = (self.training, self.plan, run, recipe.checkpoint, tell)
        self.timed = bare_loop.TimedTraining(*given)

    def run(self) -> Sample:
        """The real loop for some seconds."""
        return self.timed.run(self.job.seconds, self.recipe.batch_size)

    def batches(self) -> list[Any]:
        """The prepared micro-batches of the first step."""
        (batches,) = self.plan.batches(0, 1, self.training.accumulation_steps)
        return batches

    def evaluating(self, count: int) -> Callable[[], Any]:
        """The evaluation of so many images, or of all, as the loop does it after each epoch."""
        from .. import build
        from ..core.sources import take

        val = self.both.val
        few = val if count >= len(val) else take(val, count, self.recipe.seed)
        both = replace(self.both, val=few)
        plan = build.plan(self.recipe, both, self.training, self.place)
        return lambda: plan.evaluate(lambda: False, lambda done, total: None)


def _made_bare_loop(recipe: Recipe, classes: int, batches: Sequence[Any], place: Any) -> Any:
    from .. import build
    from ..benchmarking import bare_loop

    model = build.place_model(recipe, build.model(recipe, classes), place)
    criterion = build.criteria(recipe, place.device)["loss"]
    optimizer = build.optimizer(recipe, model)
    return bare_loop.BareLoop(model, optimizer, criterion, batches, place)


def _step(job: Job) -> _Found:
    """The trainer beside the bare loop, and what an epoch needs beside its steps."""
    setup = _Setup(job)
    loop = _made_bare_loop(
        setup.recipe, len(setup.both.train.classes), setup.batches(), setup.place
    )
    trainer, bare = job.in_turn("step", [setup.run, lambda: loop.run(job.seconds)])
    tell("step: checkpoints and rows")
    found = setup.evaluating(setup.recipe.eval_batch_size)()
    ends = setup.timed.ends_of_epochs(1 + job.rounds, found)
    facts = {
        "train_images": len(setup.both.train),
        "val_images": len(setup.both.val),
        "micro_batches": setup.training.accumulation_steps,
        "data_share_of_step": statistics.median(setup.timed.data_shares[1:]),
        "epoch_end_seconds": statistics.median(ends[1:]),
    }
    sides = Side.rates("trainer", trainer), Side.rates("bare loop", bare)
    return [Pair("step", "images/s", *sides)], facts


def _evaluation(job: Job) -> _Found:
    """The evaluation of a split beside the bare forward pass over as many images."""
    from ..benchmarking import bare_loop

    setup = _Setup(job)
    model, size = setup.training.model, setup.recipe.eval_batch_size
    with bare_loop.seen_by(model) as seen:
        setup.evaluating(size)()
    rate = bare_loop.bare_forward(model, seen[:1], setup.place).rate
    images = min(size * max(1, round(_PASS * job.seconds * rate / size)), len(setup.both.val))
    evaluate = setup.evaluating(images)
    full, rest = divmod(images, len(seen[0]))
    batches = [seen[0]] * full + [seen[0][:rest]] * bool(rest)

    def evaluated() -> Sample:
        began = time.perf_counter()
        found = evaluate()
        return Sample(found.images, time.perf_counter() - began)

    sides = [evaluated, lambda: bare_loop.bare_forward(model, batches, setup.place)]
    ours, bare = job.in_turn("evaluation", sides)
    sides = Side.rates("evaluation", ours), Side.rates("bare forward", bare)
    return [Pair("evaluation", "images/s", *sides, {"images": images})], {}


def _timm(job: Job) -> _Found:
    """Our trainer beside timm's train.py, both on timm's plain model: it has no CIFAR stem."""
    plain = f"model={job.load().recipe.model.name}"
    words, batch, reason = in_child(_timm_words, job, plain)
    if reason:
        return [], {"no_timm_train": reason}
    ours, other = beside_timm(job, lambda: in_child(_one_rate, job, plain), words, batch)
    sides = Side.rates("trainer", ours), Side.rates("timm's train.py", other)
    return [Pair("step, plain model", "images/s", *sides, {"command": words[1:]})], {}


def _one_rate(job: Job, *more: str) -> Sample:
    return _Setup(job, *more).run()


def _timm_words(job: Job, plain: str) -> tuple[list[str], int, str]:
    """The command of train.py for the recipe, the images of its steps; or why there is none."""
    setup = _Setup(job, plain)
    recipe, source, place = setup.recipe, setup.both.train, setup.place
    given = (place.precision, place.device.type, len(usable_cores()))
    steps = setup.training.accumulation_steps
    try:
        words = timm_baseline.train_words(recipe, job.script, source, *given, steps)
    except timm_baseline.Untranslatable as error:
        return [], 0, str(error)
    words += timm_baseline.data_words(recipe, source, job.folder / "images")
    return [*words, "--output", str(job.folder / "timm")], recipe.batch_size, ""


def _start(job: Job) -> _Found:
    return startup(job, in_child(_reading, job)), {}


def _reading(job: Job) -> float:
    from .. import build

    recipe, began = _here(job), time.perf_counter()
    build.data(recipe).train.digest()
    return time.perf_counter() - began


def _memory(job: Job) -> _Found:
    tell("memory: the trainer, the bare loop")
    trainer, images, batches = in_child(_trainer_peaks, job)
    bare = in_child(_bare_peaks, job, *batches)
    pairs = []
    for name, ours, other, more in zip(_PEAKS, trainer, bare, (images, 0), strict=True):
        if ours and other:
            sides = Side("trainer", (ours,)), Side("bare loop + data", (other + more,))
            pairs.append(Pair(name, "bytes", *sides, {"data_bytes": more}))
    return pairs, {}


def _trainer_peaks(job: Job) -> tuple[tuple, int, tuple]:
    """Its peaks; the images' bytes; classes and the batches of a step for the bare loop."""
    setup = _Setup(job)
    setup.run()
    reached, train = _peaks(), setup.both.train
    batches = [(b.images.cpu().numpy(), b.target.cpu().numpy()) for b in setup.batches()]
    return reached, timm_baseline.held((train, setup.both.val)), (len(train.classes), batches)


def _bare_peaks(job: Job, classes: int, batches: Sequence[Any]) -> tuple:
    from torch import channels_last, contiguous_format, from_numpy

    from .. import engine
    from ..core.task import Batch

    recipe = _here(job)
    place = engine.Distributed(recipe.precision, recipe.threads, recipe.deterministic)
    layout = {"memory_format": channels_last if recipe.channels_last else contiguous_format}
    ready = [
        Batch(from_numpy(images).to(place.device, **layout), from_numpy(target).to(place.device))
        for images, target in batches
    ]
    _made_bare_loop(recipe, classes, ready, place).run(job.seconds)
    return _peaks()


def _peaks() -> tuple[int | None, int]:
    """Bytes at most of main memory and of the GPU in this process."""
    import torch

    return peak_memory(), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _two(job: Job) -> _Found:
    gpus, images, rate = in_child(_scale, job)
    if gpus == 1:
        return [], {"no_scaling": "there is one GPU"}
    return scaling(job, images, rate, per_process=gpus > 1), {}


def _scale(job: Job) -> tuple[int, int, float]:
    """GPUs, training images, and about how many a second one process trains on."""
    import torch

    setup = _Setup(job)
    return torch.cuda.device_count(), len(setup.both.train), setup.run().rate


STAGES: dict[str, tuple[Callable[[Job], _Found], str]] = {
    "data": (_data, "the data path beside timm's loader and beside our own image by image"),
    "step": (partial(in_child, _step), "the trainer beside the bare loop"),
    "eval": (partial(in_child, _evaluation), "an evaluation beside the bare forward pass"),
    "timm": (_timm, "the trainer beside timm's train.py (needs --timm-train)"),
    "startup": (_start, "from the command to the first step, beside importing torch and timm"),
    "memory": (_memory, "the peak beside the bare loop's and the data set"),
    "scaling": (_two, "two processes beside one"),
}


if __name__ == "__main__":
    sys.exit(main())
