"""`export`: every format gives torch's logits back; the hub gets a card and the files."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import Hub
from huggingface_hub import constants
from PIL import Image
from safetensors import safe_open
from small_runs import SMALL, train

from vision_tutorial import api
from vision_tutorial.commands import export as command

DENSE = ["recipes/segmentation/quickstart.yaml", "model={unet: {channels: [8, 16]}}"]
DENSE += ["aux_loss=null", "epochs=1", "warmup={}", "batch_size=8", "threads=1"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    return train(folder, "recipes/debug.yaml", *SMALL, "model=test_resnet")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = "dataset={shapes: {masks: true, size: 32, train: 32, test: 8}}"
    return train(tmp_path_factory.mktemp("masks"), *DENSE, data)


def logits_of(path: Path, images: list[Image.Image]) -> tuple[np.ndarray, dict]:
    """What onnxruntime makes of images that are prepared as the file itself says."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    about = {each.key: each.value for each in onnx.load(path).metadata_props}
    about |= {key: json.loads(about[key]) for key in ("mean", "std", "classes", "best", "input")}
    pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    pixels = (pixels - np.float32(about["mean"])) / np.float32(about["std"])
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": pixels.transpose(0, 3, 1, 2).copy()})
    return logits, about


def test_onnx_of_a_classifier_on_real_images(tmp_path: Path, data_root: Path) -> None:
    pytest.importorskip("onnxscript")
    words = [*SMALL[1:], "dataset=cifar100", "holdout=0.01", "subset=64", "model=test_resnet"]
    run = train(tmp_path, "recipes/debug.yaml", *words)
    assert command.main([str(run)]) == 0
    images = [
        Image.open(path).convert("RGB") for path in sorted(data_root.glob("camvid/val/*"))[:7]
    ]
    images = [image.resize((32, 32)) for image in images]
    said = api.load(run).predict(images)
    for count in (1, 7):
        logits, about = logits_of(run / "export" / "debug.onnx", images[:count])
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        for one, other in zip(exponents / exponents.sum(1, keepdims=True), said, strict=False):
            np.testing.assert_allclose(one, other.probabilities, atol=1e-5)
    assert about["classes"] == list(said[0].classes) and len(about["classes"]) == 100
    assert about["best"]["metric"] == "val/top1" and about["best"]["epoch"] >= 1
    assert (about["input"]["height"], about["input"]["width"]) == (32, 32)


def test_onnx_of_a_segmenter_on_real_images(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    words = ["dataset=camvid", "subset=8", "holdout=0.025", "augment=[{random_crop: {size: 48}}]"]
    run = train(tmp_path, *DENSE, *words, "eval_batch_size=1")
    assert command.main([str(run)]) == 0
    assert "input 3x360x480; on 8 images of val its logits differ" in capsys.readouterr().out
    images = [Image.open(path) for path in sorted((data_root / "camvid/val").iterdir())[:3]]
    model = api.load(run)
    for count in (1, 3):
        logits, about = logits_of(run / "export" / "segmentation-quickstart.onnx", images[:count])
        assert logits.shape == (count, len(about["classes"]), 360, 480)
        for one, image in zip(logits, images, strict=False):
            assert (one.argmax(0) == model.predict(image).ids).mean() > 0.9999  # ties


def test_onnx_and_the_other_formats_without_the_data(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for form, ending in (("torchscript", "pt"), ("safetensors", "safetensors")):
        path = tmp_path / f"model.{ending}"
        assert command.main([str(labels), "--format", form, "-o", str(path), "--size", "24"]) == 0
    loaded = torch.jit.load(tmp_path / "model.pt", _extra_files=(extra := {"metadata.json": ""}))
    assert loaded(torch.zeros(3, 3, 24, 24)).shape == (3, 10)
    about = json.loads(extra["metadata.json"])
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == about["classes"]
        assert file.get_tensor("fc.weight").shape == (10, loaded.fc.weight.shape[1])
    assert "3x24x24" in capsys.readouterr().out
    # what is written wrong is not kept for good
    network = torch.nn.Conv2d(3, 2, 1)
    with pytest.raises(Exception, match="gives other logits than torch"):
        command._compared(network, torch.rand(3, 3, 4, 4), lambda x: network(x) + 0.1, Path("x"))
    with pytest.raises(Exception, match="gives other logits than torch"):
        command._compared(network, torch.rand(3, 3, 4, 4), lambda x: network(x)[:1], Path("x"))


def test_timm_reads_its_folder(labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert command.main([str(labels), "--format", "timm", "-o", str(folder)]) == 0
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    weights = timm.create_model(
        "test_resnet", num_classes=10, checkpoint_path=folder / "model.safetensors"
    )
    ours = api.load(labels).network
    for other in (model, weights):
        for one, two in zip(ours.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(one, two)
    assert model.pretrained_cfg["num_classes"] == 10
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], list(config["mean"])) == ((3, 16, 16), [0.5, 0.5, 0.5])


def test_what_timm_cannot_build_is_refused(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command.main([str(masks), "--format", "timm", "-o", str(tmp_path / "m")]) == 2
    assert "not one of timm's" in capsys.readouterr().err


# -- the hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, asked by the real client, as with HF_ENDPOINT."""
    found = Hub()
    files = f"{found.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": found.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": files,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # its servers have no stand-in
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_student")
    monkeypatch.setenv("no_proxy", "*")
    yield found
    found.close()


def card_of(hub: Hub) -> tuple[dict, str]:
    _, head, text = hub.files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_push_can_be_read_back_by_timm(
    hub: Hub, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [str(labels), "--format", "timm", "-o", str(tmp_path / "net"), "--push", "mia/net"]
    assert command.main(words) == 0
    assert f"pushed: {hub.address}/mia/net" in capsys.readouterr().out
    written = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    assert {name: hub.files[name] for name in written} == written
    assert sum(path.endswith("/commit/main") for path in hub.asked) == 1
    head, text = card_of(hub)
    assert (head["library_name"], head["pipeline_tag"]) == ("timm", "image-classification")
    best = json.loads((labels / "summary.json").read_text())["best"]["value"]
    (claim,) = head["model-index"][0]["results"]
    assert claim["metrics"][0]["value"] == pytest.approx(best)
    assert f"| val/top1 | {best:.4g} |" in text and 'create_model("hf-hub:mia/net"' in text
    assert (labels / "recipe.yaml").read_text().rstrip() in text
    model = timm.create_model("hf-hub:mia/net", pretrained=True)
    own = api.load(labels).network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


def test_the_card_of_a_segmenter(hub: Hub, masks: Path) -> None:
    words = [str(masks), "--format", "torchscript", "--push", "mia/masks"]
    assert command.main(words) == 0
    assert (
        hub.files["segmentation-quickstart.pt"]
        == (masks / "export/segmentation-quickstart.pt").read_bytes()
    )
    head, text = card_of(hub)
    assert (head["library_name"], head["pipeline_tag"]) == ("vision_tutorial", "image-segmentation")
    assert (
        "| val/miou | " in text
        and 'hf_hub_download("mia/masks", "segmentation-quickstart.pt")' in text
    )


def test_a_hub_that_does_not_answer_or_refuses_is_one_line(
    hub: Hub, labels: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(labels), "--format", "safetensors", "--push"]
    assert command.main([*words, "a/b/c"]) == 2 and not (labels / "export").exists()
    assert "--push a/b/c: give it as USER/NAME" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert command.main([*words, "mia/net"]) == 2
    wrong = capsys.readouterr().err
    hub.close()
    assert command.main([*words, "mia/net"]) == 2
    offline = capsys.readouterr().err
    for said in (wrong, offline):
        (line,) = said.strip().splitlines()
        assert line.startswith("error: --push mia/net: the hub does not take it (")
        assert f"{labels}/export/debug.safetensors" in line and "`hf auth login`" in line
    assert "401" in wrong and not hub.files
    assert (labels / "export/debug.safetensors").exists()
