"""What other programs (ultralytics, timm, mmpretrain, Lightning, Keras) call a value of a recipe,
and where a recipe has it.
"""

from collections.abc import Mapping
from typing import Any

from . import grammar
from .fields import REGISTRY_FIELDS, Recipe
from .signatures import static_signatures

# ours, and theirs: a key, an option of an entry that the recipe names, or a whole override
_OURS = {
    "lr": "learning_rate lr0 base_lr init_lr max_lr",
    "min_lr": "lr_min final_lr",
    "weight_decay": "wd l2",
    "epochs": "epoch num_epochs n_epochs max_epochs num_train_epochs train_epochs max_epoch",
    "batch_size": "batch bs batchsize train_batch_size batch_size_per_gpu samples_per_gpu "
    "per_device_train_batch_size",
    "eval_batch_size": "val_batch_size validation_batch_size test_batch_size",
    "workers": "num_workers nw worker workers_per_gpu dataloader_num_workers",
    "threads": "num_threads cpu_threads",
    "seed": "random_seed manual_seed",
    "optimizer": "opt optim",
    "schedule": "sched scheduler lr_scheduler lr_schedule lr_config",
    "loss": "criterion loss_fn loss_function",
    "augment": "aa augmentation augmentations transforms transform auto_augment",
    "model": "arch net network architecture backbone",
    "label_smoothing": "smoothing",
    "dropout": "drop drop_rate",
    "drop_path": "drop_path_rate stochastic_depth",
    "eval_every": "val_interval eval_interval eval_freq val_freq check_val_every_n_epoch",
    "early_stopping.patience": "patience",
    "warmup.epochs": "warmup_epochs warmup_epoch",
    "warmup.lr": "warmup_lr warmup_lr_init",
    "cooldown.epochs": "cooldown_epochs",
    "clip.norm": "clip_grad grad_clip max_grad_norm gradient_clip_val clip_grad_norm",
    "ema.decay": "model_ema_decay ema_decay model_ema",
    "compile": "torchcompile torch_compile",
    "wandb.project": "project wandb_project",
    "wandb.entity": "entity wandb_entity",
    "precision=fp16": "amp fp16 half mixed_precision",
    "precision=bf16": "bf16",
    "schedule=cosine": "cos_lr",
    "mix.mixup.alpha": "mixup mixup_alpha",
    "mix.cutmix.alpha": "cutmix cutmix_alpha",
}
_SYNONYMS = {theirs: ours for ours, names in _OURS.items() for theirs in names.split()}
_ELSEWHERE = {
    "the size is that of augment and eval_augment, such as augment.random_crop.size=32": "imgsz "
    "img_size image_size input_size crop_size resolution img",
    "a GPU is taken where there is one; CUDA_VISIBLE_DEVICES chooses which": "device gpu gpus cuda",
    "classes are counted in the data set": "num_classes nc classes",
    "batch_size is that of a whole step, and micro_batch the most images at once": "accumulate "
    "grad_accum_steps accumulate_grad_batches gradient_accumulation_steps grad_accum",
}
_TEXTS = {theirs: text for text, names in _ELSEWHERE.items() for theirs in names.split()}
_LOOKED_IN = ("optimizer", "loss", "schedule", "model", "dataset", "mix", "augment")


def advised(key: str, value: str, values: Mapping[str, Any]) -> str | None:
    """What to write for `key=value`, where `key` is none of a recipe's: "write batch_size=64".

    values: of the recipe, plain, by which an lr is its optimizer's. None where nothing is known.
    """
    key = key.strip().lower().replace("-", "_")
    place = _place(_SYNONYMS.get(key, key), values)
    if place:
        return f"write {place}" + ("" if "=" in place else f"={value or '…'}")
    return _TEXTS.get(key)


def _place(key: str, values: Mapping[str, Any]) -> str | None:
    """The path of what we call `key` in the recipe of these values."""
    fields = Recipe.model_fields
    if key in fields or "." in key or "=" in key:
        return key
    known = static_signatures()
    for name in _LOOKED_IN:
        mark, given = REGISTRY_FIELDS[name], values.get(name)
        if given is None:
            given = grammar.plain(fields[name].get_default())
        opened = grammar.opened(given, mark.form)
        items = opened if isinstance(opened, list) else [opened]
        for entry in (entry for item in items if isinstance(item, dict) for entry in item):
            found = known[mark.registry].find(entry) if isinstance(entry, str) else None
            if found and key in found.options:
                return f"{name}.{entry}.{key}"
    if key == "lr":
        return "optimizer.NAME.lr"
    return None
