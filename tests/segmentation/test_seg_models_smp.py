"""The networks of segmentation_models_pytorch behind `smp/`: without it a line, with it itself."""

from importlib.util import find_spec

import jsonschema
import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import models
from vision_tutorial.engine.profiling import cost
from vision_tutorial.optim import parameter_groups
from vision_tutorial.recipe.grammar import parse
from vision_tutorial.recipe.schema import schema
from vision_tutorial.recipe.signatures import read, static_signatures
from vision_tutorial.segmentation.models import smp as entry

installed = pytest.mark.skipif(
    not find_spec("segmentation_models_pytorch"), reason="segmentation_models_pytorch is optional"
)


def built(name: str, num_classes: int = 3, **options):
    torch.manual_seed(0)
    return models.build(name, **options)(num_classes)


def test_the_signatures_know_the_prefix_without_importing():
    registry = static_signatures()["models"]
    assert registry.find("smp/Unet") is registry.fallbacks["smp/"]
    assert registry.find("smp/Unet").forwards
    assert registry.find("smp") is None and registry.find("snp/Unet") is None
    choice = parse({"smp/FPN": {"encoder": "resnet18", "decoder_dropout": 0.1}}, registry, "choice")
    assert choice.name == "smp/FPN"
    assert choice.options == {"encoder": "resnet18", "pretrained": False, "decoder_dropout": 0.1}


def test_editors_know_the_prefix():
    made = schema(static_signatures())
    alone = {"$ref": "#/$defs/models.choice", "$defs": made["$defs"]}
    valid = jsonschema.Draft202012Validator(alone).is_valid
    assert valid("smp/Unet") and valid({"smp/Unet": {"anything": 1}})
    assert not valid({"smp/Unet": {"encoder": 3}}) and not valid("snp/Unet")


def test_without_the_library_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(entry, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install segmentation-models-pytorch"):
        built("smp/Unet")


def test_a_prefix_is_one_text(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("@models.register_fallback(name)\ndef mine(name, n, /): ...")
    with pytest.raises(UserError, match="mine.py:2: register_fallback takes one text, the prefix"):
        read(path)


@installed
def test_it_is_the_librarys_own_network():
    import segmentation_models_pytorch as library

    ours = built("smp/Unet", 3, encoder="resnet18", decoder_channels=[32, 16, 8, 8, 8]).eval()
    torch.manual_seed(0)
    options = {"encoder_weights": None, "classes": 3, "decoder_channels": [32, 16, 8, 8, 8]}
    theirs = library.Unet("resnet18", **options).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert ours(images[..., :50, :70]).shape == (1, 3, 50, 70)


@installed
def test_it_trains_and_is_counted():
    network = built("smp/FPN", encoder="resnet18").train()
    network(torch.randn(2, 3, 64, 64)).mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.device("meta"):
        twin = models.build("smp/FPN", encoder="resnet18")(3)
    assert cost(twin, 64) == cost(network, 64)
    own = {id(p) for p in network.parameters()}
    last = list(network.get_classifier().parameters())
    assert last and all(id(p) in own for p in last)
    with pytest.raises(UserError, match="does not tell its layers apart"):
        parameter_groups(network, weight_decay=0.1, layer_decay=0.5)


@installed
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("smp/Unett", {}, "no model called 'smp/Unett'; did you mean 'smp/Unet'?"),
        ("smp/Unet", {"encoder": "resnet19"}, "did you mean 'resnet18'?"),
        ("smp/Unet", {"classes": 3}, "no option of smp/Unet called 'classes'"),
        ("smp/Unet", {"pretrained": "noisy"}, "Wrong pretrained weights `noisy`"),
    ],
)
def test_complaints_of_smp_are_one_line(name, options, said, monkeypatch):
    monkeypatch.setattr(entry.weights, "look_for_hub", lambda: None)
    with pytest.raises(UserError) as caught:
        built(name, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)
