"""Tests of ``bundle.inference.export``: what is loaded from a file computes what the network does."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle
import pytest
import torch
import transformers
from bundle.__main__ import main
from bundle.files import WriteError
from bundle.inference import export as exporting
from bundle.inference import export_command
from bundle.inference.export import PrototypeSegmenter, SliceEncoder, export, read_configs, to_onnx, to_torchscript
from bundle.networks import (
    ALPNet,
    CosineClassifier,
    PrototypeHead,
    ResNetEncoder,
    TopKClassifier,
    TransformerEncoder,
    load_network,
)
from bundle.networks.alpnet import reduce_mask, upsample
from bundle.provenance import fingerprint
from monai.bundle import ckpt_export, onnx_export
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "inference.yaml"), str(ROOT / "configs" / "export.yaml")]
Run = Callable[..., Tensor]

# Slices, rows, columns; none is what a file is made with.
SIZES = [(3, 64, 64), (1, 96, 128), (2, 50, 41)]


@pytest.fixture(scope="module")
def network() -> ALPNet:
    """The network of ``configs/inference.yaml`` with other weights than the shipped ones."""
    torch.manual_seed(5)
    return ALPNet(ResNetEncoder(depth=18, last_stage="layer3")).eval()


@pytest.fixture(scope="module")
def folder(network: ALPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.pt`` and what the command makes of it: both parts in both formats."""
    folder = tmp_path_factory.mktemp("exported")
    torch.save(network.state_dict(), folder / "model.pt")
    for part in ("encoder", "segmenter"):
        for form, ending in (("onnx", "onnx"), ("torchscript", "ts")):
            words = ["--format", form, "--checkpoint", str(folder / "model.pt")]
            main(["export", part, *words, "--output", str(folder / f"{part}.{ending}")])
    return folder


def loaded(path: Path) -> Run:
    """Return a file as a function; it knows nothing but the file."""
    if path.suffix == ".ts":
        return torch.jit.load(str(path))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        names = [each.name for each in session.get_inputs()]
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def told_by(path: Path) -> dict[str, str]:
    """Return what a file tells of itself; what is no text as JSON."""
    if path.suffix == ".ts":
        files = {"metadata.json": ""}
        torch.jit.load(str(path), _extra_files=files)
        told = json.loads(files["metadata.json"])
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}
    import onnx

    return {each.key: each.value for each in onnx.load(path).metadata_props}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cpu")


def by_slice(network: ALPNet, classifier: nn.Module, image: Tensor, *prototypes: Tensor) -> Tensor:
    """What the head computes, one slice after the other."""
    head = PrototypeHead(classifier=classifier)
    return upsample(torch.stack([head.score(slice_, *prototypes) for slice_ in network.encoder(image)]), image)


class TinyEncoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3, 2, 1, device="cpu"), nn.ReLU(), nn.Conv2d(6, 8, 3, 4, 1, device="cpu"))


@pytest.mark.parametrize("file", ["encoder.onnx", "encoder.ts"])
@pytest.mark.parametrize(("slices", "height", "width"), SIZES)
def test_an_encoder_file_gives_the_networks_features(
    folder: Path, network: ALPNet, file: str, slices: int, height: int, width: int
) -> None:
    image = random(slices, 3, height, width)
    with torch.no_grad():
        expected = network.encoder(image)
    assert expected.shape == (slices, 256, -(-height // 8), -(-width // 8))
    torch.testing.assert_close(loaded(folder / file)(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file", ["segmenter.onnx", "segmenter.ts"])
@pytest.mark.parametrize(("slices", "height", "width"), SIZES)
@pytest.mark.parametrize(("n", "m"), [(9, 2), (1, 30), (40, 1)])
def test_a_segmenter_file_gives_the_logits_of_the_head(
    folder: Path, network: ALPNet, file: str, slices: int, height: int, width: int, n: int, m: int
) -> None:
    inputs = (random(slices, 3, height, width), random(n, 256), random(m, 256))
    with torch.no_grad():
        expected = by_slice(network, TopKClassifier(5), *inputs)
    found = loaded(folder / file)(*inputs)
    assert found.shape == (slices, 2, height, width)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    certain = (expected[:, 0] - expected[:, 1]).abs() >= 1e-4
    assert certain.float().mean() > 0.99
    assert torch.equal(found.argmax(dim=1)[certain], expected.argmax(dim=1)[certain])


@pytest.mark.parametrize("file", ["segmenter.onnx", "segmenter.ts"])
@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0), (0, 0)])
def test_a_class_without_prototypes_scores_zero_in_a_file(
    folder: Path, network: ALPNet, file: str, n: int, m: int
) -> None:
    inputs = (random(2, 3, 64, 72), random(n, 256), random(m, 256))
    with torch.no_grad():
        expected = by_slice(network, TopKClassifier(5), *inputs)
    found = loaded(folder / file)(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for count, scores in zip((n, m), found.unbind(dim=1), strict=True):
        assert bool(scores.any()) == (count > 0)


@pytest.mark.parametrize("file", ["segmenter.onnx", "segmenter.ts"])
def test_a_prototype_of_zeros_stands_for_none_in_a_file(folder: Path, file: str) -> None:
    image, background = random(2, 3, 64, 72), random(4, 256)
    run = loaded(folder / file)
    none, zeros = run(image, background, torch.zeros(0, 256)), run(image, background, torch.zeros(1, 256))
    torch.testing.assert_close(none, zeros, rtol=0, atol=0)


@pytest.mark.parametrize("classifier", [CosineClassifier(7.0), TopKClassifier(3, scale=7.0)])
def test_a_segmenter_with_pooled_prototypes_gives_the_logits_of_the_network(classifier: CosineClassifier) -> None:
    network = ALPNet(TinyEncoder(), classifier=classifier).eval()
    query, support = random(2, 3, 64, 80), random(1, 1, 3, 64, 80)
    mask = torch.zeros(1, 1, 1, 64, 80)
    mask[..., 8:48, 24:72] = 1
    expected = network(query, support.expand(2, -1, -1, -1, -1), mask.expand(2, -1, -1, -1, -1))
    features = network.encoder(support[0])
    background, foreground = network.prototypes(features, reduce_mask(mask, features)[0])
    assert len(background) != len(foreground)
    found = PrototypeSegmenter(network.encoder, classifier)(query, background, foreground)
    torch.testing.assert_close(found, expected)


def test_a_segmenter_scores_the_background_first_and_upsamples() -> None:
    """With intensities as features: the left half is background, the right half foreground; the cosine is 1 or 0."""
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, :, None, :].expand(1, 2, 3, 2)
    background, foreground = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    logits = PrototypeSegmenter(nn.Identity())(image, background, foreground)
    expected = torch.tensor([[20.0, 0.0], [0.0, 20.0]])[None, :, None, :].expand(1, 2, 3, 2)
    torch.testing.assert_close(logits, expected)
    halved = PrototypeSegmenter(nn.AvgPool2d(2))(
        image.repeat_interleave(2, 2).repeat_interleave(2, 3), *([background] * 2)
    )
    assert halved.shape == (1, 2, 6, 4)


@pytest.mark.parametrize("convert", [to_onnx, to_torchscript])
def test_the_papers_classifier_is_exported_too(
    tmp_path: Path, convert: Callable[[Any, dict[str, Any]], tuple[bytes, Run]]
) -> None:
    segmenter = PrototypeSegmenter(TinyEncoder(), CosineClassifier(11.0)).eval()
    path = tmp_path / ("file.onnx" if convert is to_onnx else "file.ts")
    with torch.no_grad():
        path.write_bytes(convert(segmenter, {})[0])
    inputs = (random(3, 3, 40, 56), random(4, 8), random(1, 8))
    with torch.no_grad():
        expected = by_slice(ALPNet(segmenter.encoder), CosineClassifier(11.0), *inputs)
    torch.testing.assert_close(loaded(path)(*inputs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("part", ["encoder", "segmenter"])
@pytest.mark.parametrize("ending", ["onnx", "ts"])
def test_a_file_tells_what_a_user_needs(folder: Path, network: ALPNet, part: str, ending: str) -> None:
    told = told_by(folder / f"{part}.{ending}")
    preprocessing, classifier = json.loads(told.pop("preprocessing")), told.pop("classifier", None)
    expected = {
        "name": f"SSL-ALPNet {part}",
        "version": bundle.__version__,
        "orientation": "PLS",
        "normalization": "intensity as in preprocessing, then minus the mean of the scan's voxels, divided by their "
        "standard deviation",
        "channels": "the slice, three times",
        "encoder": fingerprint(network.encoder),
    }
    assert told == (expected | {"scale": "20.0"} if part == "segmenter" else expected)
    assert preprocessing["slice_size"] == [256, 256]
    assert preprocessing["intensity"]["percentile"] == 99.5
    if part == "segmenter":
        assert json.loads(classifier)["kind"] == "TopKClassifier"
        assert json.loads(classifier)["k"] == 5


def test_the_axes_of_an_onnx_file_have_names(folder: Path) -> None:
    import onnx

    graph = onnx.load(folder / "segmenter.onnx").graph
    axes = {
        each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in [*graph.input, *graph.output]
    }
    assert axes == {
        "image": ["slices", 3, "height", "width"],
        "background": ["n", 256],
        "foreground": ["m", 256],
        "logits": ["slices", 2, "height", "width"],
    }


def test_numbers_of_the_training_set_are_told() -> None:
    assert exporting.normalization({"mean": 12.5, "std": 40.25}) == (
        "intensity as in preprocessing, then minus 12.5, divided by 40.25, mean and standard deviation of the training "
        "set"
    )
    assert "minus the mean of the scan's voxels" in exporting.normalization(None)


def test_further_configs_and_keys_change_what_is_exported() -> None:
    keys = {"network_def#encoder#weights": "$None", "network_def::encoder::depth": 34, "bundle_root": str(ROOT)}
    parser = read_configs([ROOT / "configs" / "preset_paper.yaml"], keys)
    segmenter = parser.get_parsed_content("segmenter_def")
    assert type(segmenter.classifier) is CosineClassifier  # its head is null
    assert len(segmenter.encoder.backbone.layer4) == 3
    assert segmenter.encoder is parser.get_parsed_content("network_def").encoder


def test_a_further_config_may_change_what_the_exported_parts_are_made_of(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("segmenter_def::classifier: $@network_def.classifier\n")
    segmenter = read_configs([tmp_path / "other.yaml"]).get_parsed_content("segmenter_def")
    assert type(segmenter.classifier) is CosineClassifier


@pytest.mark.parametrize("part", ["encoder", "segmenter"])
def test_monais_own_command_exports_to_torchscript(folder: Path, network: ALPNet, tmp_path: Path, part: str) -> None:
    ckpt_export(
        net_id=f"{part}_def",
        filepath=str(tmp_path / "file.ts"),
        ckpt_file=str(folder / "model.pt"),
        config_file=CONFIGS,
        bundle_root=str(ROOT),
    )
    inputs = (random(2, 3, 50, 41), random(7, 256), random(3, 256))[: 1 if part == "encoder" else 3]
    with torch.no_grad():
        expected = network.encoder(*inputs) if part == "encoder" else by_slice(network, TopKClassifier(5), *inputs)
    torch.testing.assert_close(loaded(tmp_path / "file.ts")(*inputs), expected, rtol=1e-4, atol=1e-4)


def test_monais_own_command_exports_the_encoder_to_onnx_with_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ckpt_file``, which MONAI asks for before it reads a config, is in the file of arguments."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the command leaves the weights there
    monkeypatch.chdir(ROOT)
    onnx_export(args_file="configs/onnx_export.json", filepath=str(tmp_path / "file.onnx"))
    network = load_network(read_configs().get_parsed_content("network_def"), ROOT / "models" / "model.pt").cpu().eval()
    image = random(3, 3, 50, 41)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tmp_path / "file.onnx")(image), network.encoder(image), rtol=1e-4, atol=1e-4)


def test_a_vision_transformer_is_exported_to_onnx_alone(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    with torch.device("cpu"):
        module = SliceEncoder(TransformerEncoder(tmp_path / "dinov2")).eval()
    with torch.no_grad():
        (tmp_path / "file.onnx").write_bytes(to_onnx(module, {})[0])
        image = random(3, 3, 96, 56)
        torch.testing.assert_close(loaded(tmp_path / "file.onnx")(image), module(image), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"TransformerEncoder cannot be exported to TorchScript: .* Try --format onnx"):
        to_torchscript(module, {})


class Unexportable(nn.Module):
    """A branch that depends on the values is too much for ONNX, a lambda for TorchScript."""

    def forward(self, image: Tensor) -> Tensor:
        double = lambda tensor: 2 * tensor  # noqa: E731
        return double(image) if float(image.sum()) > 0 else image


class Otherwise(nn.Module):
    """Computes something else in a TorchScript file."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return image * self.factor
        return image


@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("torchscript", "ts")])
def test_an_encoder_that_cannot_be_exported_is_named_and_the_old_file_stays(
    tmp_path: Path, form: str, ending: str
) -> None:
    path = tmp_path / "out" / f"file.{ending}"
    path.parent.mkdir()
    path.write_text("old")
    parser = read_configs([], {"checkpoint": None})
    parser["encoder_def"] = SliceEncoder(Unexportable())
    with pytest.raises(ValueError, match=f"Unexportable cannot be exported to {'ONNX' if form == 'onnx' else 'Torch'}"):
        export("encoder", path, form, parser)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_takes_no_file_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(exporting, "read_configs", lambda: pytest.fail("the work began"))
    with pytest.raises(
        ValueError, match=r"encoder.ts cannot be written \(Permission denied\). Give --output in another"
    ):
        export("encoder", tmp_path / "encoder.ts", "torchscript")


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(path: Path, content: bytes) -> None:
        path.write_text("half of it", encoding="utf-8")
        raise OSError(28, "No space left on device")

    (tmp_path / "file.ts").write_text("old")
    parser = read_configs([], {"checkpoint": None})
    parser["encoder_def"] = SliceEncoder(TinyEncoder())
    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(WriteError, match=r"file.ts cannot be written .No space left"):
        export("encoder", tmp_path / "file.ts", "torchscript", parser)
    assert (tmp_path / "file.ts").read_text() == "old"


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, factor: float) -> None:
    parser = read_configs([], {"checkpoint": None})
    parser["encoder_def"] = SliceEncoder(Otherwise(factor))
    with pytest.raises(
        ValueError, match=r"may differ from the network by 1e-04 of the largest value, got (1.0e-03|nan)"
    ):
        export("encoder", tmp_path / "file.ts", "torchscript", parser)
    assert not list(tmp_path.iterdir())


def test_the_difference_to_the_network_is_returned(tmp_path: Path) -> None:
    parser = read_configs([], {"checkpoint": None})
    parser["encoder_def"] = SliceEncoder(Otherwise(1 + 2**-15))
    assert export("encoder", tmp_path / "file.ts", "torchscript", parser) == pytest.approx(2**-15, rel=1e-2)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs the package {name}: pip install 'ssl-alpnet-bundle\[export\]'"):
        to_onnx(SliceEncoder(TinyEncoder()), {})


def test_importing_the_module_needs_no_onnx() -> None:
    code = (
        "import sys, bundle.inference.export; sys.exit(bool({'onnx', 'onnxscript', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["decoder"], "export has no subcommand 'decoder'. Did you mean 'encoder'?"),
        (
            ["encoder", "here"],
            "'here' belongs to no option of export encoder. Its options: --format, --output, --configs.",
        ),
        (["encoder", "--format=trt"], "--format must be one of onnx, torchscript, got 'trt'."),
        (["encoder", "--output={d}/a.ts"], "--output must end in .onnx for --format onnx, got {d}/a.ts."),
        (["encoder", "--output={d}/model.pt/a.onnx"], "{d}/model.pt/a.onnx cannot be written ("),
        (["encoder", "--output=5"], "--output must be a text, got 5. Write a name that is a number"),
        (["encoder", "--checkpoint"], "--checkpoint has no value. Write --checkpoint"),
        (["encoder", "--output={d}/a.onnx", "--checkpoint={d}/none.pt"], "no weights at {d}/none.pt."),
        (
            ["encoder", "--output={d}/a.onnx", "--checkpoint={d}/model.pt", "--network_def#encoder#depth=34"],
            "the weights {d}/model.pt do not fit ALPNet: missing",
        ),
        (
            ["encoder", "--output={d}/a.onnx", "--network_def#encoder#depth=7"],
            "depth must be 18, 34, 50 or 101, got 7.",
        ),
        (["encoder", "--configs=preset_papr"], "there is no config preset_papr. Give a path, or"),
        (["encoder", "--configs={d}/a.yaml,preset_paper"], "there is no config {d}/a.yaml. Give a path, or one of"),
        (["encoder", "--configs=preset_paper,preset_x"], "there is no config preset_x. Give a path, or one of"),
        (["encoder", "--formt=onnx"], "unknown key 'formt' in the command: "),
        (["encoder", "--zzz=1"], "unknown key 'zzz' in the command: "),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_sentence(folder: Path, words: list[str], sentence: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        main(["export", *(word.replace("{d}", str(folder)) for word in words)])
    said = sentence.replace("{d}", str(folder)).replace("{root}", str(ROOT))
    assert str(stop.value.code).startswith(f"error: {said}")
    assert sorted(folder.iterdir()) == before


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the part must be one of encoder, segmenter, got 'head'"):
        export("head", tmp_path / "head.onnx")


def test_a_key_that_a_part_of_the_config_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'network_def#encoder#depht': .* Did you mean 'depth'\?"):
        read_configs([], {"network_def#encoder#depht": 18})


def test_without_options_the_shipped_weights_go_to_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(export_command, "export", lambda *words: calls.append(words) or 0.0)
    main(["export", "segmenter", "--format", "torchscript"])
    ((part, path, form, parser),) = calls
    assert (part, path, form) == ("segmenter", "segmenter.ts", "torchscript")
    assert parser.get_parsed_content("checkpoint") == f"{ROOT}/models/model.pt"


@pytest.mark.parametrize("words", [[], ["--help"], ["encoder", "--help"]])
def test_the_manual_tells_every_option(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", *words])
    page = capsys.readouterr().out
    for option in ("--format", "--output", "--checkpoint", "--configs"):
        assert f"\n{option} " in page
