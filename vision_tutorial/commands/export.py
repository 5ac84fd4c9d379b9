"""A run's network for other programs: ONNX, TorchScript, safetensors, or a folder that timm reads;
with classes, normalisation, input size and metrics beside the weights. --push brings it to the hub.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.atomic import make_folder, new_folder, replacing, write_text
from ..core.cli_types import loading, looks, positive_count
from ..core.errors import UserError
from ..recipe.command_line import Parser
from ..recipe.fields import to_plain, to_yaml
from ..recipe.loading import Loaded, load
from ..runs.reader import read
from ..runs.run_folder import recipe_file
from . import entry_point

_TOLERANCE = 1e-3  # of logits, between torch and what was exported
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors", "timm": ""}


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial export",
        description=__doc__,
        epilog="The network takes images as training does: normalised floats (B, 3, H, W), of any "
        "batch size. onnx needs the packages of the extra `export`.",
    )
    add = made.add_argument
    add("run", metavar="RUN", type=Path, help="a run folder, made by `train`")
    add("--format", choices=SUFFIX, default="onnx", help="default: %(default)s")
    add("-o", "--output", type=Path, metavar="PATH", help="default: RUN/export/NAME")
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    add("--size", type=positive_count, metavar="PIXELS", help="input size, where images differ")
    add("--push", metavar="USER/NAME", help="upload it, with a model card, to the Hugging Face hub")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Write the network, compare what was written, and upload it if asked to."""
    loaded = load(recipe_file(args.run))
    with loading():  # after the recipe is known to be good
        from .. import inference

    options = looks(weights=args.weights, trust_imports=args.trust_imports)
    with inference.opened([(args.run, loaded)], options, alone="export"):
        names = inference.class_names(args.run, loaded.recipe)
        network = inference.network_of(args.run, loaded, len(names), args.weights)
    network.eval()
    size = args.size or _size(loaded)
    about = metadata(args.run, loaded, names, size)
    path = args.output or args.run / "export" / f"{loaded.recipe.name}{SUFFIX[args.format]}"
    if args.format != "timm":
        make_folder(path.parent)
    write: Callable = globals()[f"_write_{args.format}"]
    difference = write(network, size, about, path, loaded)
    said = "" if difference is None else f"; largest difference to torch {difference:.1e}"
    print(f"{args.format}: {path} (input 3x{size[0]}x{size[1]}{said})")
    if args.push:
        print(_push(args.push, path, about, args.run))
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


def _size(loaded: Loaded) -> tuple[int, int]:
    """(height, width) of the images that an evaluation sees."""
    from .. import build
    from ..data.loader import augmented_images

    source = build.data(loaded.recipe).val
    sample = augmented_images(loaded.recipe, source, training=False)[0, 0]
    return tuple(sample[0].shape[-2:])


def _examples(size: tuple[int, int]) -> tuple[Any, Any]:
    """A batch to trace with, and one of another size to compare with."""
    import torch

    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=draw), torch.randn(3, 3, *size, generator=draw)


def _write_onnx(network: Any, size: Any, about: Any, path: Path, loaded: Loaded) -> float:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"onnx needs {error.name}: pip install 'vision-tutorial[export]'."
        ) from error
    import torch

    example, other = _examples(size)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        network,
        (example,),
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
    (found,) = session.run(None, {"images": other.numpy()})
    return _compared(network, other, torch.from_numpy(found), path)


def _write_torchscript(network: Any, size: Any, about: Any, path: Path, loaded: Loaded) -> float:
    import torch

    example, other = _examples(size)
    with torch.no_grad():
        traced = torch.jit.trace(network, example)
    extra = {"metadata.json": json.dumps(about, ensure_ascii=False)}
    with replacing(path) as temporary:
        torch.jit.save(traced, temporary, _extra_files=extra)
    return _compared(network, other, torch.jit.load(path)(other), path)


def _write_safetensors(network: Any, size: Any, about: Any, path: Path, loaded: Loaded) -> None:
    from safetensors.torch import save_file

    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=words)


def _write_timm(network: Any, size: Any, about: Any, path: Path, loaded: Loaded) -> float:
    """model.safetensors and config.json, for `timm.create_model("local-dir:PATH")`."""
    import timm
    import torch

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
        "input_size": (3, *size),
        "mean": tuple(about["mean"]),
        "std": tuple(about["std"]),
        "label_names": about["classes"],
    }
    config = {"model_args": given} if given else {}
    with new_folder(path) as folder:
        timm.models.save_for_hf(network, folder, model_config=config, safe_serialization=True)
        write_text(folder / "recipe.yaml", to_yaml(to_plain(loaded.recipe)))
    _, other = _examples(size)
    back = timm.create_model(f"local-dir:{path.absolute()}", pretrained=True).eval()
    with torch.no_grad():
        return _compared(network, other, back(other), path)


def _compared(network: Any, images: Any, found: Any, path: Path) -> float:
    """The largest difference of logits. UserError where it is no rounding."""
    import torch

    with torch.no_grad():
        expected = network(images)
    difference = (
        (expected - found).abs().max().item() if found.shape == expected.shape else float("inf")
    )
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{path} gives other logits than torch (off by {difference:.3g}); not to be used."
        )
    return difference


def card(about: dict[str, Any], recipe: str) -> str:
    """A model card: what it is, what it reached, how to use it, the recipe."""
    best = about["best"] or {}
    metric = (best.get("metric") or "").removeprefix("val/")
    tag = "image-classification" if about["task"] == "classification" else "image-segmentation"
    lines = ["---", "library_name: vision_tutorial", f"pipeline_tag: {tag}", "---", ""]
    lines += [f"# {about['recipe']}", "", f"Trained on {about['dataset']} by {about['made_by']}."]
    if best:
        on = about["chosen_on"] or "validation images"
        lines += ["", "| metric | best | epoch | on |", "|---|---|---|---|"]
        lines += [f"| {metric} | {best['value']:.2f} | {best['epoch']} | {on} |"]
    lines += ["", "Input: RGB in 0 … 1, then `(x - mean) / std`:", "", "```json"]
    facts = {key: about[key] for key in ("input", "mean", "std", "classes")}
    lines += [json.dumps(facts, indent=1, ensure_ascii=False), "```", "", "The recipe:", ""]
    return "\n".join([*lines, "```yaml", recipe.rstrip(), "```", ""])


def _push(name: str, path: Path, about: dict[str, Any], run: Path) -> str:
    """Upload what was written, and a card. UserError where the hub is not reached."""
    import tempfile

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        page = api.create_repo(name, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            readme = Path(folder) / "README.md"
            readme.write_text(card(about, (run / "recipe.yaml").read_text("utf-8")), "utf-8")
            api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id=name)
        if path.is_dir():
            api.upload_folder(folder_path=path, repo_id=name)
        else:
            api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=name)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"--push {name}: the hub does not take it ({text}). The file is in {path}; log in with "
            "`hf auth login`, and try again where the network is."
        ) from error
    return f"pushed: {page}"
