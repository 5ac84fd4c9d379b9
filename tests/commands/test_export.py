"""`export`: every format gives torch's logits back; the hub gets a card and the file."""

import json
from pathlib import Path

import pytest
import timm
import torch
from small_runs import SMALL, train

from vision_tutorial.commands import export as command

DENSE = [
    "recipes/segmentation/quickstart.yaml",
    "model={unet: {channels: [8, 16]}}",
    "aux_loss=null",
]
DENSE += ["dataset={shapes: {masks: true, size: 32, train: 32, test: 8}}", "epochs=1", "warmup={}"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    return train(folder, "recipes/debug.yaml", *SMALL, "model=test_resnet")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("masks"), *DENSE, "batch_size=8", "threads=1")


@pytest.mark.parametrize("which", ["labels", "masks"])
def test_onnx_gives_the_same_logits(which: str, request: pytest.FixtureRequest) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = request.getfixturevalue(which)
    assert command.main([str(run)]) == 0
    (path,) = (run / "export").glob("*.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[2:]
    for batch in (1, 5):
        images = torch.rand(batch, 3, *size).numpy()
        (logits,) = session.run(None, {"images": images})
        assert len(logits) == batch
    props = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert len(json.loads(props["classes"])) == logits.shape[1]
    assert json.loads(props["best"])["epoch"] >= 1


def test_the_other_formats(labels: Path, tmp_path: Path) -> None:
    for form, ending in (("torchscript", "pt"), ("safetensors", "safetensors")):
        path = tmp_path / f"model.{ending}"
        assert command.main([str(labels), "--format", form, "-o", str(path)]) == 0
        assert path.stat().st_size > 1000
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert loaded(torch.zeros(3, 3, 16, 16)).shape == (3, 10)


def test_timm_reads_its_folder(labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert command.main([str(labels), "--format", "timm", "-o", str(folder)]) == 0
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    weights = timm.create_model(
        "test_resnet", num_classes=10, checkpoint_path=folder / "model.safetensors"
    )
    for one, other in zip(model.state_dict().values(), weights.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert model.pretrained_cfg["num_classes"] == 10


def test_what_timm_cannot_build_is_refused(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command.main([str(masks), "--format", "timm", "-o", str(tmp_path / "m")]) == 2
    assert "not one of timm's" in capsys.readouterr().err
