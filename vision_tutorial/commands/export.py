"""A run's network for other programs: ONNX, TorchScript, safetensors, or a folder that timm reads;
with classes, normalisation, input size and metrics beside the weights. --push brings it to the hub.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.atomic import make_folder, new_folder, replacing, write_text
from ..core.cli_types import loading, looks, positive_count
from ..core.errors import UserError, short
from ..recipe.command_line import Parser
from ..recipe.fields import to_plain, to_yaml
from ..recipe.loading import Loaded, load
from ..runs.reader import read
from ..runs.run_folder import recipe_file
from . import entry_point

_TOLERANCE = 1e-3  # of logits, beside the largest, between torch and what was exported
_COMPARED = 8  # images
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors", "timm": ""}


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial export",
        description=__doc__,
        epilog="The network takes images as training does: normalised floats (B, 3, H, W), of any "
        "batch size. What was written is read back, and its logits on validation images, one and "
        f"{_COMPARED} at a time, may differ from torch's by {_TOLERANCE:g} of the largest. onnx "
        "needs the packages of the extra `export`.",
    )
    add = made.add_argument
    add("run", metavar="RUN", type=Path, help="a run folder, made by `train`")
    add("--format", choices=SUFFIX, default="onnx", help="default: %(default)s")
    add("-o", "--output", type=Path, metavar="PATH", help="default: RUN/export/NAME")
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    add("--size", type=positive_count, metavar="PIXELS", help="input size; needs no data set")
    add("--push", metavar="USER/NAME", help="upload it, with a model card, to the Hugging Face hub")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Write the network, compare what was written, and upload it if asked to."""
    loaded = load(recipe_file(args.run))
    if args.push:
        _check_push(args.push)
    with loading():  # after the recipe is known to be good
        from .. import inference

    options = looks(weights=args.weights, trust_imports=args.trust_imports)
    with inference.opened([(args.run, loaded)], options, alone="export"):
        names = inference.class_names(args.run, loaded.recipe)
        network = inference.network_of(args.run, loaded, len(names), args.weights)
    network.eval()
    images = _examples(loaded, args.size)
    about = metadata(args.run, loaded, names, tuple(images.shape[-2:]))
    path = args.output or args.run / "export" / f"{loaded.recipe.name}{SUFFIX[args.format]}"
    if args.format != "timm":
        make_folder(path.parent)
    write: Callable = globals()[f"_write_{args.format}"]
    difference = write(network, images, about, path, loaded)
    shape = "x".join(map(str, images.shape[1:]))
    kind = "noise" if args.size else "val"
    said = f"; on {len(images)} images of {kind} its logits differ from torch's by at most "
    said = "" if difference is None else f"{said}{difference:.1e}"
    print(f"{args.format}: {path} (input {shape}{said})")
    if args.push:
        print(_push(args.push, path, about, card(args, loaded, about, path)))
    return 0


def metadata(run: Path, loaded: Loaded, classes: Any, size: tuple[int, int]) -> dict[str, Any]:
    """What another program has to know of the network."""
    from .. import __version__
    from ..data.pipeline import colours

    found, (mean, std) = read(run), colours(loaded.recipe)
    best = found.best and {
        "metric": found.metric,
        "epoch": found.best.epoch,
        "value": found.best.value,
    }
    return {
        "made_by": f"vision_tutorial {__version__}",
        "recipe": loaded.recipe.name,
        "task": loaded.recipe.task.name,
        "model": {loaded.recipe.model.name: dict(loaded.recipe.model.options)},
        "dataset": loaded.recipe.dataset.name,
        "classes": list(classes),
        "input": {"channels": "RGB", "range": [0, 1], "height": size[0], "width": size[1]},
        "mean": list(mean),
        "std": list(std),
        "best": best,
        "chosen_on": found.chosen_on,
    }


def _examples(loaded: Loaded, size: int | None) -> Any:
    """Images (N, 3, H, W) as the network takes them, of the validation split; noise of `size`."""
    import torch

    from .. import build
    from ..data.loader import augmented_images
    from ..data.pipeline import mean_std, normalize

    if size:
        return torch.randn(_COMPARED, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        source = build.data(loaded.recipe).val
    except UserError as error:
        raise UserError(f"{error} Without the data set, give the input's --size.") from error
    images = augmented_images(loaded.recipe, source, training=False)
    found = [images[0, index][0] for index in range(min(len(source), _COMPARED))]
    pixels = torch.stack([one for one in found if one.shape == found[0].shape])
    pixels = pixels.repeat(-(-3 // len(pixels)), 1, 1, 1)  # a batch of more than is traced
    return normalize(pixels, *mean_std(loaded.recipe))


def _write_onnx(network: Any, images: Any, about: Any, path: Path, loaded: Loaded) -> float:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"onnx needs {error.name}: pip install 'vision-tutorial[export]'."
        ) from error
    import torch

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        network,
        (images[:2],),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    made = program.model_proto
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        made.metadata_props.add(key=key, value=text)
    with replacing(path) as temporary:
        onnx.save(made, temporary)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(batch: Any) -> Any:
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])

    return _compared(network, images, run, path)


def _write_torchscript(network: Any, images: Any, about: Any, path: Path, loaded: Loaded) -> float:
    import torch

    extra = {"metadata.json": json.dumps(about, ensure_ascii=False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what others read
        with torch.no_grad():
            traced = torch.jit.trace(network, images[:2])
        with replacing(path) as temporary:
            torch.jit.save(traced, temporary, _extra_files=extra)
        return _compared(network, images, torch.jit.load(path), path)


def _write_safetensors(network: Any, images: Any, about: Any, path: Path, loaded: Loaded) -> None:
    from safetensors.torch import save_file

    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=words)


def _write_timm(network: Any, images: Any, about: Any, path: Path, loaded: Loaded) -> float:
    """model.safetensors and config.json, for `timm.create_model("local-dir:PATH")`."""
    import timm

    name, options = loaded.recipe.model.name, dict(loaded.recipe.model.options)
    ours = ("stem", "stage4_stride", "drop_path", "dropout", "zero_init", "init", "pretrained")
    given = {key: value for key, value in options.items() if key not in ours}
    changed = options.get("stem") == "cifar" or options.get("stage4_stride") == 1
    if not timm.is_model(name) or changed:
        what = "stem: cifar or stage4_stride: 1" if timm.is_model(name) else "not one of timm's"
        raise UserError(f"timm cannot build {name} ({what}); use onnx, torchscript or safetensors.")
    architecture = name.partition(".")[0]
    network.pretrained_cfg = {
        **network.pretrained_cfg,
        "architecture": architecture,
        "num_classes": len(about["classes"]),
        "input_size": tuple(images.shape[1:]),
        "mean": tuple(about["mean"]),
        "std": tuple(about["std"]),
        "label_names": about["classes"],
    }
    config = {"model_args": given} if given else {}
    with new_folder(path) as folder:
        timm.models.save_for_hf(network, folder, model_config=config, safe_serialization=True)
        write_text(folder / "recipe.yaml", to_yaml(to_plain(loaded.recipe)))
    back = timm.create_model(f"local-dir:{path.absolute()}", pretrained=True).eval()
    return _compared(network, images, back, path)


def _compared(network: Any, images: Any, other: Callable, path: Path) -> float:
    """The largest difference of logits, one image at a time and all. UserError where it is no
    rounding."""
    import torch

    largest = 0.0
    for batch in (images[:1], images):
        with torch.no_grad():
            expected, found = network(batch), other(batch)
        difference = float("inf")
        if found.shape == expected.shape:
            difference = (expected - found).abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(
                f"{path} gives other logits than torch (off by {difference:.3g}); not to be used."
            )
        largest = max(largest, difference)
    return largest


# -- the hub ---------------------------------------------------------------------------------------

_USE = {
    "timm": 'import timm\n\nmodel = timm.create_model("hf-hub:{name}", pretrained=True)',
    "onnx": "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n\n"
    'session = onnxruntime.InferenceSession(hf_hub_download("{name}", "{file}"))\n'
    '(logits,) = session.run(None, {{"images": images}})',
    "torchscript": "import torch\nfrom huggingface_hub import hf_hub_download\n\n"
    'model = torch.jit.load(hf_hub_download("{name}", "{file}"))',
    "safetensors": "from huggingface_hub import hf_hub_download\n"
    "from safetensors.torch import load_file\n\n"
    'state_dict = load_file(hf_hub_download("{name}", "{file}"))',
}


def card(args: argparse.Namespace, loaded: Loaded, about: dict[str, Any], path: Path) -> str:
    """A model card: what it is, what it reached, how to use it, the recipe."""
    from huggingface_hub import EvalResult, ModelCardData

    dense, best, run = about["task"] != "classification", about["best"], read(args.run)
    reached = [row for row in run.rows if best and row.get("epoch") == best["epoch"]]
    numbers = {
        key: row[key] for row in reached for key in row if key.startswith(("train/", "val/"))
    }
    task = "image-segmentation" if dense else "image-classification"
    place = {"task_type": task, "dataset_type": about["dataset"], "dataset_name": about["dataset"]}
    claims = (
        [
            EvalResult(
                **place, metric_type=best["metric"].removeprefix("val/"), metric_value=best["value"]
            )
        ]
        if best
        else None
    )
    head = ModelCardData(
        library_name="timm" if args.format == "timm" else "vision_tutorial",
        pipeline_tag=task,
        model_name=about["recipe"],
        eval_results=claims,
    )
    lines = ["---", head.to_yaml(), "---", "", f"# {about['recipe']}", ""]
    lines += [f"{loaded.recipe.model.name}, trained on {about['dataset']} by {about['made_by']}."]
    if best:
        on = about["chosen_on"] or "validation"
        lines += ["", f"Epoch {best['epoch']}, the best on the {on} images, by {best['metric']}:"]
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {key} | {value:.4g} |" for key, value in numbers.items()]
    use = _USE[args.format].format(name=args.push, file=path.name)
    lines += ["", "## Use", "", "```python", use, "```", ""]
    lines += ["Images are RGB in 0 … 1, then `(x - mean) / std`:", "", "```json"]
    facts = {key: about[key] for key in ("input", "mean", "std", "classes")}
    lines += [json.dumps(facts, indent=1, ensure_ascii=False), "```", "", "## The recipe", ""]
    recipe = (args.run / "recipe.yaml").read_text("utf-8").rstrip()
    return "\n".join([*lines, "```yaml", recipe, "```", ""])


def _check_push(name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--push {name}: give it as USER/NAME, in letters, digits, -_. ."
        ) from error


def _push(name: str, path: Path, about: dict[str, Any], readme: str) -> str:
    """Upload what was written, and the card, in one commit. UserError where the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi

    from ..core.weights import look_for_hub

    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    added = [CommitOperationAdd("README.md", readme.encode())]
    added += [CommitOperationAdd(file.name, file) for file in sorted(files)]
    look_for_hub()
    try:
        api = HfApi()
        page = api.create_repo(name, exist_ok=True)
        api.create_commit(name, added, commit_message=f"{about['recipe']}, {about['made_by']}")
    except Exception as error:  # its client raises whatever it likes
        text = short(" ".join(str(error).split()), 200)
        raise UserError(
            f"--push {name}: the hub does not take it ({text}). It is in {path}. Log in with "
            "`hf auth login`, and give the same command where the network is."
        ) from error
    return f"pushed: {page}"
