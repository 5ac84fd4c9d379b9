"""The recipe that a run of timm's train.py meant: `vision-tutorial import timm OUTPUT/args.yaml`.
What has no words here is listed, and not silently left out.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ...core.atomic import write_text
from ...core.cli_types import positive_count
from ...core.errors import UserError, short, shown
from ...recipe.command_line import Parser
from ...recipe.fields import to_yaml
from ...recipe.loading import load
from ...recipe.yaml_lines import read_document
from .. import entry_point

# What says nothing of learning: how a run is shown, kept, and fed.
_QUIET = """
data data_dir output experiment log_interval workers recovery_interval checkpoint_hist save_images
pin_mem no_prefetcher eval_metric use_multi_epochs_loader log_wandb wandb_project wandb_tags
wandb_resume_id local_rank device device_modules worker_seeding fuser torchscript resume
no_resume_opt start_epoch config synchronize_step no_ddp_bb dataset_trust_remote_code
validation_batch_size train_num_samples val_num_samples torchcompile_mode num_classes dist_bn
world_size rank distributed prefetcher grad_accum_steps class_map naflex_train_seq_lens
naflex_max_seq_len naflex_loss_scale train_size_schedule train_size_schedule_spread
train_size_random_mix variable_batch_loss_scale kd_distill_type kd_loss_type kd_temperature
kd_token_distill_type lr_noise_pct lr_noise_std lr_cycle_limit lr_k_decay lr_cycle_mul lr_base
lr_base_size lr_base_scale layer_decay_min_scale ratio interpolation crop_pct patience_epochs
decay_epochs decay_rate decay_milestones model_ema_decay model_ema_warmup model_ema_force_cpu
mixup_switch_prob mixup_prob smoothing bce_sum bce_target_thresh color_jitter_prob remode recount
amp_dtype clip_mode lr_cycle_decay no_aug
""".split()
_RAND = {
    "m": "magnitude",
    "n": "num_ops",
    "p": "p",
    "mstd": "magnitude_std",
    "mmax": "magnitude_max",
}


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial import", description=__doc__)
    add = made.add_argument
    add("program", choices=("timm",), help="whose run it was")
    add("file", metavar="args.yaml", help="its arguments, as train.py writes them")
    add("-o", "--output", type=Path, metavar="FILE", help="the recipe (default: it is printed)")
    text = "of that run; its batch size is per process (default: 1)"
    add("--processes", type=positive_count, default=1, metavar="N", help=text)
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print or write the recipe; what it does not say goes to standard error."""
    given = read_document(Path(args.file)).values
    if not {"model", "opt", "sched", "batch_size"} <= given.keys():
        raise UserError(f"{args.file}: no arguments of timm's train.py (model, opt, sched, …).")
    recipe, notes = translated(given, args.processes)
    head = f"# {recipe['name']}: what timm's train.py was told, from {Path(args.file).name}."
    text = f"{head}\n{to_yaml({k: v for k, v in recipe.items() if k != 'name'}, True)}"
    for note in notes:
        print(f"not the same: {note}", file=sys.stderr)
    if args.output:
        write_text(args.output, text)
        load(args.output)  # a mistake shows here, not at the first training
        print(f"recipe: {args.output}")
    else:
        print(text, end="")
    return 0


def translated(given: dict[str, Any], processes: int = 1) -> tuple[dict[str, Any], list[str]]:
    """A recipe's plain values, and a line for each argument that it cannot say.

    given: the arguments by name, with underscores. processes: of that run.
    """
    take = _Arguments(given)
    size, notes = _size(take), take.notes
    batch = take("batch_size", 128) * processes * (given.get("grad_accum_steps") or 1)
    made: dict[str, Any] = {"name": f"timm-{take('model')}".replace(".", "-").replace("/", "-")}
    made["dataset"] = _dataset(take, given)
    made["augment"] = _augment(take, given, size)
    crop = given.get("crop_pct") or 0.875
    kind = take("interpolation", "") or "bicubic"
    resize = {"resize": {"size": int(size / crop), "interpolation": kind}}
    made["eval_augment"] = [resize, {"center_crop": {"size": size}}]
    mean, std = take("mean"), take("std")
    made["normalize"] = {"mean": mean, "std": std} if mean and std else "imagenet"
    if mix := _mix(take, given):
        made["mix"] = mix
    made["model"] = {given["model"]: _model(take)}
    made["loss"] = _loss(take, given)
    made["epochs"], made["batch_size"] = take("epochs", 300), batch
    made["optimizer"] = {take("opt"): _optimizer(take, given, batch)}
    made["parameter_groups"] = {"layer_decay": take("layer_decay")}
    made["schedule"] = _schedule(take, given)
    made["schedule_unit"] = "step" if take("sched_on_updates") else "epoch"
    mode = "front" if take("warmup_prefix") else "overlap"
    made["warmup"] = {
        "epochs": take("warmup_epochs", 0),
        "lr": take("warmup_lr", 1e-5),
        "mode": mode,
    }
    made["cooldown"] = {"epochs": take("cooldown_epochs", 0)}
    if clip := take("clip_grad"):
        made["clip"] = {given.get("clip_mode") or "norm": clip}
    if take("model_ema"):
        warm = bool(given.get("model_ema_warmup"))
        made["ema"] = {"decay": given.get("model_ema_decay") or 0.9998, "warmup": warm}
    if take("amp"):
        made["precision"] = "bf16" if given.get("amp_dtype") == "bfloat16" else "fp16"
    made["channels_last"] = bool(take("channels_last"))
    made["compile"] = bool(take("torchcompile"))
    made["sync_bn"] = bool(take("sync_bn"))
    made["seed"], made["eval_every"] = take("seed", 42), take("val_interval", 1)
    return {key: value for key, value in made.items() if value is not None}, notes + take.left()


class _Arguments:
    """timm's arguments; remembers which were asked for. notes: what cannot be said."""

    def __init__(self, given: dict[str, Any]):
        self.given, self.asked, self.notes = given, set(_QUIET), list[str]()

    def __call__(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        value = self.given.get(name)
        return default if value is None else value

    def left(self) -> list[str]:
        """A line for each that nobody asked for and that is not off."""
        rest = {k: v for k, v in self.given.items() if k not in self.asked}
        on = {k: v for k, v in rest.items() if v not in (None, False, 0, "", [], {})}
        defaults = {"train_split": "train", "val_split": "validation", "mixup_mode": "batch"}
        return [f"{k}={shown(v)}" for k, v in on.items() if defaults.get(k) != v]


def _size(take: _Arguments) -> int:
    whole, side = take("input_size"), take("img_size")
    if not whole and not side:
        take.notes.append("the image size, which was the model's own; 224 is taken")
    return int(whole[-1] if whole else side or 224)


def _dataset(take: _Arguments, given: dict[str, Any]) -> Any:
    name = str(take("dataset", ""))
    kind, _, rest = name.rpartition("/")
    root = given.get("data_dir") or given.get("data")
    if kind == "torch" and rest in ("cifar10", "cifar100"):
        return {rest: {"root": root}} if root else rest
    if name.startswith("hfds/"):
        return {"hub": {"name": name.removeprefix("hfds/")}}
    if name and name.lower() not in ("imagefolder", "folder"):
        take.notes.append(f"dataset={shown(name)}; write your own `dataset` in its place")
    train, val = take("train_split", "train"), take("val_split", "validation")
    return {"image_folder": {"root": root or "DATA", "train": train, "test": val}}


def _augment(take: _Arguments, given: dict[str, Any], size: int) -> list[Any]:
    if given.get("no_aug"):
        take.notes.append("no_aug: images are resized and cropped as in the evaluation")
        return [{"resize": {"size": size}}, {"center_crop": {"size": size}}]
    kind = take("train_interpolation", "random")
    if (mode := take("train_crop_mode")) not in (None, "rrc"):
        take.notes.append(f"train_crop_mode={mode}; random_resized_crop is taken")
    crop = {"size": size, "scale": take("scale", [0.08, 1.0]), "interpolation": kind}
    ratio = given.get("ratio") or [3 / 4, 4 / 3]
    made: list[Any] = [{"random_resized_crop": {**crop, "ratio": ratio}}]
    for flip in ("hflip", "vflip"):
        if share := take(flip, 0.5 if flip == "hflip" else 0.0):
            made.append({flip: {"p": share}})
    policy, jitter = take("aa"), take("color_jitter", 0.4)
    if policy:
        made.append(_policy(take, str(policy), kind))
    if jitter and (not policy or str(policy).startswith("3a")):
        share = given.get("color_jitter_prob")
        made.append({"color_jitter": {"strength": jitter, "p": 1.0 if share is None else share}})
    if share := take("grayscale_prob"):
        made.append({"grayscale": {"p": share}})
    if share := take("gaussian_blur_prob"):
        made.append({"gaussian_blur": {"p": share}})
    if share := take("reprob"):
        more = {"mode": given.get("remode") or "pixel", "count": given.get("recount") or 1}
        made.append({"random_erasing": {"p": share, **more}})
    return made


def _policy(take: _Arguments, text: str, interpolation: str) -> Any:
    name, *parts = text.split("-")
    options: dict[str, Any] = {"interpolation": interpolation}
    for part in parts:
        found = re.fullmatch(r"(mstd|mmax|inc|m|n|p|w|d|b|a|t)([\d.]+)", part)
        if not found:
            take.notes.append(f"aa={short(text, 60)}: '{short(part, 20)}'")
        elif found[1] == "inc":
            options["increasing"] = bool(int(found[2]))
        elif found[1] in _RAND:
            number = float(found[2])
            options[_RAND[found[1]]] = int(number) if found[1] in ("n", "mmax") else number
        else:
            take.notes.append(f"aa={short(text, 60)}: '{short(part, 20)}'")
    if options.get("magnitude_std", 0) > 100:  # timm draws from a uniform distribution then
        options["magnitude_std"] = None
    if name in ("rand", "augmix"):
        options.setdefault("increasing", False)
        options.setdefault("magnitude_std", 0.0)
    if name == "augmix":
        kept = ("magnitude", "magnitude_std", "interpolation")
        return {"aug_mix": {key: options[key] for key in kept if key in options}}
    if name == "rand":
        return {"rand_augment": options}
    return {"auto_augment": {"policy": name, **options}}


def _mix(take: _Arguments, given: dict[str, Any]) -> dict[str, Any]:
    alphas = {"mixup": take("mixup", 0.0), "cutmix": take("cutmix", 0.0)}
    switch, p = given.get("mixup_switch_prob", 0.5), given.get("mixup_prob", 1.0)
    mode = take("mixup_mode", "batch")
    weights = {"mixup": 1 - switch, "cutmix": switch} if all(alphas.values()) else {}
    return {
        name: {"weight": weights.get(name, 1.0), "alpha": alpha, "p": p, "mode": mode}
        for name, alpha in alphas.items()
        if alpha
    }


def _model(take: _Arguments) -> dict[str, Any]:
    made = {"pretrained": bool(take("pretrained")), "dropout": take("drop", 0.0)}
    made["drop_path"] = take("drop_path") or take("drop_connect") or 0.0
    if block := take("drop_block"):
        made["drop_block_rate"] = block
    return {k: v for k, v in (made | dict(take("model_kwargs", {}))).items() if v}


def _loss(take: _Arguments, given: dict[str, Any]) -> Any:
    smoothing = given.get("smoothing") or 0.0
    if take("jsd_loss"):
        return {"jsd": {"num_splits": take("aug_splits", 3) or 3, "smoothing": smoothing}}
    if take("bce_loss"):
        options = {"smoothing": smoothing, "sum_classes": bool(given.get("bce_sum"))}
        return {"bce": {**options, "target_threshold": given.get("bce_target_thresh")}}
    return {"cross_entropy": {"label_smoothing": smoothing}}


def _optimizer(take: _Arguments, given: dict[str, Any], batch: int) -> dict[str, Any]:
    name, lr = given["opt"], take("lr")
    if lr is None:  # by timm's rule
        ratio = batch / (given.get("lr_base_size") or 256)
        adaptive = any(word in name.lower() for word in ("ada", "lamb"))
        root = (given.get("lr_base_scale") or ("sqrt" if adaptive else "linear")) == "sqrt"
        lr = (given.get("lr_base") or 0.1) * (ratio**0.5 if root else ratio)
    made = {"lr": lr, "weight_decay": take("weight_decay", 2e-5)}
    momentum = take("momentum", 0.9)
    if name.startswith(("sgd", "momentum", "nesterov", "rmsprop", "muon")):
        made["momentum"] = momentum
    if (eps := take("opt_eps")) is not None:
        made["eps"] = eps
    if (betas := take("opt_betas")) is not None:
        made["betas"] = betas
    return made | dict(take("opt_kwargs", {}))


def _schedule(take: _Arguments, given: dict[str, Any]) -> Any:
    name, low = take("sched", "cosine"), take("min_lr", 0.0)
    if name == "cosine":
        return {"cosine": {"min_lr": low}}
    if name == "poly":
        return {"poly": {"power": given.get("decay_rate") or 0.9, "min_lr": low}}
    if name == "step":
        every, gamma = given.get("decay_epochs") or 90, given.get("decay_rate") or 0.1
        return {"step": {"every": every, "gamma": gamma}}
    if name == "multistep":
        milestones = given.get("decay_milestones") or [90, 180, 270]
        return {"multistep": {"milestones": milestones, "gamma": given.get("decay_rate") or 0.1}}
    if name == "plateau":
        patience, factor = given.get("patience_epochs") or 10, given.get("decay_rate") or 0.1
        return {"plateau": {"patience": patience, "factor": factor, "min_lr": low}}
    if name != "none":
        take.notes.append(f"sched={shown(name)}; the lr is constant")
    return "constant"
