"""The networks against the outputs of the authors' code."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from bundle.networks import (
    AlignedALPNet,
    ALPNet,
    BackgroundPrototypes,
    ClassPrototype,
    CosineClassifier,
    ForegroundPrototypes,
    LocalPrototypes,
    ResNetEncoder,
)
from bundle.networks.alpnet import reduce_mask, upsample
from bundle.networks.prototypes import masked_average_pool
from bundle.training.losses import EpisodeLoss, alignment_loss
from tests.golden_data import golden_arrays, golden_json
from torch import Tensor, nn

# Sum in the authors' order: with two threads the last bit differs, and an argmax three steps on flips.
pytestmark = pytest.mark.usefixtures("one_thread")


class LocalAndClass(nn.Module):
    """The mode that the authors call ``gridconv+``, without the rule that chooses it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.local = LocalPrototypes(**settings)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([self.local(features, mask), masked_average_pool(features, mask)])


def pooling_of(case: dict[str, Any]) -> nn.Module:
    settings = {"window": 4, "eval_window": case["val_wsize"], "min_coverage": case["thresh"]}
    modes = {"mask": lambda **_: ClassPrototype(), "gridconv": LocalPrototypes, "gridconv+": LocalAndClass}
    return modes[case["mode"]](**settings).train(not case["isval"])


def case_id(case: dict[str, Any]) -> str:
    return f"{case['set']}-{case['key']}-{case['n_shot']}shot" if "set" in case else case["name"]


@pytest.mark.parametrize("case", golden_json("alp_index.json"), ids=case_id)
def test_prototypes_and_scores_equal_the_authors(case: dict[str, Any]) -> None:
    arrays = golden_arrays(case["file"])
    masks = torch.stack([torch.tensor(arrays[f"mask_{name}"]) for name in case["masks_used"]])[:, None]
    prototypes = pooling_of(case)(torch.tensor(arrays["sup"])[: case["n_shot"]], masks)
    if case["error"]:
        assert prototypes.shape[0] == 0  # the authors' code raises where no cell is covered
        return
    classifier = CosineClassifier()
    query = torch.tensor(arrays["qry"])

    torch.testing.assert_close(
        classifier(query, prototypes), torch.tensor(arrays[f"pred__{case['key']}"]), atol=2e-4, rtol=0
    )
    if f"assign__{case['key']}" in arrays:
        similarity = classifier.similarity(query, prototypes)
        assert similarity.shape[0] == case["n_proto"]
        chosen = similarity.gather(0, torch.tensor(arrays[f"assign__{case['key']}"]).long()[None])[0]
        assert bool((chosen >= similarity.amax(0) - 1e-4).all())
    if f"sims__{case['key']}" in arrays:
        torch.testing.assert_close(similarity, torch.tensor(arrays[f"sims__{case['key']}"]), atol=2e-4, rtol=0)


class SmallEncoder(nn.Sequential):
    """The encoder of the golden head cases; its formula stands in their README."""

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (inside, outside) in enumerate([(3, 8), (8, 16), (16, 24)], start=1):
            layers[f"c{index}"] = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
            layers[f"b{index}"] = nn.BatchNorm2d(outside)
            layers[f"r{index}"] = nn.ReLU()
        layers["localconv"] = nn.Conv2d(24, 16, 1, bias=False)
        super().__init__(layers)


def head_case(case: dict[str, Any]) -> tuple[dict[str, np.ndarray], ALPNet, dict[str, Tensor]]:
    arrays = golden_arrays(case["file"])
    network = ALPNet(SmallEncoder())
    network.load_state_dict({key[3:]: torch.tensor(arrays[key]) for key in arrays if key.startswith("w0.")})
    episode = {
        "query_image": torch.tensor(arrays["qry_img"])[None, None].repeat(1, 3, 1, 1),
        "support_image": torch.tensor(arrays["sup_img"])[None, :, None].repeat(1, 1, 3, 1, 1),
        "support_mask": torch.tensor(arrays["fore_mask"])[None, :, None].float(),
    }
    return arrays, network.train(case["train"]), episode


HEAD_CASES = golden_json("head_index.json")


@pytest.mark.parametrize("case", HEAD_CASES, ids=case_id)
def test_logits_equal_the_authors(case: dict[str, Any]) -> None:
    arrays, network, episode = head_case(case)
    logits = network(**episode)
    assert logits.isfinite().all()
    if case["error"]:
        return  # the authors' code raises here; ours has a finite result, see test_prototypes.py
    torch.testing.assert_close(logits[0], torch.tensor(arrays["logits_up"]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("case", [c for c in HEAD_CASES if not c["error"]], ids=case_id)
def test_features_masks_and_scores_equal_the_authors_on_the_way(case: dict[str, Any]) -> None:
    arrays, network, episode = head_case(case)
    query, support = network.encode_episode(**episode)
    torch.testing.assert_close(torch.cat([support[0], query]), torch.tensor(arrays["features"]), atol=1e-5, rtol=1e-5)
    mask = reduce_mask(episode["support_mask"], query)
    torch.testing.assert_close(mask[0, :, 0], torch.tensor(arrays["mask_in.fg"]), atol=1e-6, rtol=0)
    scores = network.segment(query, support, mask)[0]
    expected = torch.stack([torch.tensor(arrays[f"score.{side}"]) for side in ("bg", "fg")])
    torch.testing.assert_close(scores, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("case", [c for c in HEAD_CASES if not c["error"] and c["sgd_steps"]], ids=case_id)
def test_losses_gradients_and_sgd_steps_equal_the_authors(case: dict[str, Any]) -> None:
    arrays, network, episode = head_case(case)
    target = {"label": torch.tensor(arrays["qry_label"])[None, None], "support_mask": episode["support_mask"]}
    loss = EpisodeLoss(alignment_weight=float(case["align"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    for step, (query_loss, align_loss) in enumerate(case["losses"]):
        logits = AlignedALPNet(network)(**episode)
        assert loss.query_loss(logits[0], target["label"]).item() == pytest.approx(query_loss, abs=1e-5)
        if case["align"]:
            assert alignment_loss(logits[1], target["support_mask"]).item() == pytest.approx(align_loss, abs=1e-5)
        optimizer.zero_grad()
        loss(logits, target).backward()
        if step == 0:
            for name, parameter in network.named_parameters():
                torch.testing.assert_close(
                    parameter.grad, torch.tensor(arrays[f"grad0.{name}"]), rtol=1e-3, atol=1e-6, msg=name
                )
        optimizer.step()
        if f"w{step + 1}.encoder.c1.weight" in arrays:
            for name, value in network.state_dict().items():
                expected = torch.tensor(arrays[f"w{step + 1}.{name}"])
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=f"{name}, step {step + 1}")


@pytest.mark.parametrize("case", golden_json("align_index.json"), ids=case_id)
def test_the_alignment_branch_equals_the_authors(case: dict[str, Any]) -> None:
    arrays = golden_arrays(case["file"])
    query = torch.tensor(arrays["qry_fts"])[None].requires_grad_()
    support = torch.tensor(arrays["supp_fts"])[None].requires_grad_()
    masks = torch.tensor(arrays["fore_mask"])[None, :, None].float()
    aligned = AlignedALPNet(ALPNet(nn.Identity())).align(query, support, torch.tensor(arrays["pred"])[None])
    loss = alignment_loss(upsample(aligned[0], masks)[None], masks)
    assert loss.isfinite()
    if case["error"]:
        return
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)
    for shot in range(case["n_shot"]):
        expected = torch.stack([torch.tensor(arrays[f"score.shot{shot}.{side}"]) for side in ("bg", "fg")])
        torch.testing.assert_close(aligned[0, shot], expected, atol=2e-4, rtol=0)
    loss.backward()
    torch.testing.assert_close(query.grad[0], torch.tensor(arrays["grad_qry_fts"]), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(support.grad[0], torch.tensor(arrays["grad_supp_fts"]), rtol=1e-3, atol=1e-6)


def formula_weight(key: str, shape: torch.Size) -> Tensor:
    """Weights as a function of their name: the golden set's way to do without a checkpoint."""
    n, phase = int(np.prod(shape)), zlib.crc32(key.encode()) % 1000
    i = np.arange(n, dtype=np.float64)
    s = (np.sin(0.7 * i + phase) * np.cos(0.013 * i + 0.5 * phase)).reshape(tuple(shape))
    if key.endswith("num_batches_tracked"):
        values = np.zeros(tuple(shape))
    elif len(shape) == 4:
        values = 2 * np.sqrt(2 / np.prod(shape[1:])) * s
    elif key.endswith("running_var"):
        values = 1 + 0.5 * np.abs(s)
    elif key.endswith("weight"):
        values = (0.2 if ".bn3." in key else 1.0) * (1 + 0.1 * s)
    else:
        values = 0.1 * s
    return torch.tensor(values, dtype=torch.float32)


@pytest.fixture(scope="module")
def resnet101() -> ResNetEncoder:
    encoder = ResNetEncoder(depth=101)
    state = encoder.state_dict()
    encoder.load_state_dict({key: formula_weight(key, value.shape).to(value.dtype) for key, value in state.items()})
    return encoder


def test_the_encoders_parameters_have_the_authors_names(resnet101: ResNetEncoder) -> None:
    names = golden_json("encoder_res101_keys.json")
    names = set(names if isinstance(names, list) else names.get("keys", names))
    names = {name for name in names if name.startswith(("backbone.", "localconv."))}
    assert set(resnet101.state_dict()) == names


def test_resnet101_equals_the_authors_in_eval_mode(resnet101: ResNetEncoder) -> None:
    arrays = golden_arrays("encoder_res101.npz", "feat_eval")
    image = torch.tensor(arrays["x"])[:, None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        features = resnet101.eval()(image)
    torch.testing.assert_close(features, torch.tensor(arrays["feat_eval"]), rtol=1e-3, atol=2e-4)


def test_every_stage_of_resnet101_equals_the_authors(resnet101: ResNetEncoder) -> None:
    arrays = golden_arrays("encoder_res101.npz", "stage_eval_stats.layer4", "layer3_eval_first8ch")
    features = torch.tensor(arrays["x"])[:, None].repeat(1, 3, 1, 1)
    resnet101.eval()
    for name, stage in resnet101.backbone.named_children():
        with torch.no_grad():
            features = stage(features)
        if f"stage_eval_stats.{name}" in arrays:
            mean, std, largest, *shape = arrays[f"stage_eval_stats.{name}"]
            assert list(features.shape) == [int(n) for n in shape]
            measured = [float(features.mean()), float(features.std(unbiased=False)), float(features.abs().max())]
            assert measured == pytest.approx([mean, std, largest], rel=1e-4, abs=1e-5), name
        if f"{name}_eval_first8ch" in arrays:
            torch.testing.assert_close(
                features[:, :8], torch.tensor(arrays[f"{name}_eval_first8ch"]), rtol=1e-3, atol=2e-4
            )


def test_resnet101_in_training_mode_is_as_near_to_the_authors_as_rounding_allows(resnet101: ResNetEncoder) -> None:
    """These weights make the training-mode pass chaotic: what 1e-6 on the image moves bounds what can be asked."""
    arrays = golden_arrays("encoder_res101.npz", "feat_train")
    image = torch.tensor(arrays["x"])[:, None].repeat(1, 3, 1, 1)
    expected = torch.tensor(arrays["feat_train"])
    start = {key: value.clone() for key, value in resnet101.state_dict().items()}
    with torch.no_grad():
        features = resnet101.train()(image)
        after = {key: value.clone() for key, value in resnet101.state_dict().items()}
        moved = resnet101(image + 1e-6 * torch.randn_like(image))
    resnet101.load_state_dict(start)

    for name in ("running_mean", "running_var"):
        golden = torch.tensor(arrays[f"bn1_{name}_after"])
        torch.testing.assert_close(after[f"backbone.bn1.{name}"], golden, rtol=1e-5, atol=1e-6)
    assert (features - expected).abs().mean() < (features - moved).abs().mean()
    assert torch.corrcoef(torch.stack([features.flatten(), expected.flatten()]))[0, 1] > 0.99


def test_the_rule_for_foreground_prototypes_is_the_authors() -> None:
    for case in HEAD_CASES:
        if case["error"]:
            continue
        arrays = golden_arrays(case["file"])
        mask = torch.tensor(arrays["mask_in.fg"])[:, None]
        features = torch.randn(mask.shape[0], 4, *mask.shape[-2:])
        used_local = ForegroundPrototypes()(features, mask).shape[0] > mask.shape[0]
        assert used_local == (case["classifier_calls"][1][0] == "gridconv+"), case["name"]
        assert BackgroundPrototypes()(features, 1 - mask).shape[0] >= 1
