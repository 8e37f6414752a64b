"""The shipped configs, run on a phantom: training, resume, inference, and what MONAI expects of a bundle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle.command_line.command import check_command
from bundle.evaluation.cases import read_cases
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
TRAIN = [str(CONFIGS / "train.yaml"), str(CONFIGS / "smoke.yaml")]
INFER = [str(CONFIGS / "inference.yaml"), str(CONFIGS / "smoke.yaml")]
SCHEMA = ROOT.parent / "shared" / "reference" / "schema" / "meta_schema_20240725.json"


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs set process-wide things, and read the command that started the process: give each test its own."""
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", [*sys.path])


def workflow(files: list[str], output_dir: Path, **keys: Any) -> ConfigWorkflow:
    kind = "train" if "train" in files[0] else "infer"
    logging_file = str(CONFIGS / "logging.conf")
    settings = {"bundle_root": str(ROOT), "output_dir": str(output_dir)} | keys
    made = ConfigWorkflow(files, logging_file=logging_file, workflow_type=kind, **settings)
    made.initialize()
    return made


def train(output_dir: Path, **keys: Any) -> dict[str, torch.Tensor]:
    workflow(TRAIN, output_dir, **keys).run()
    return torch.load(output_dir / "model.pt", weights_only=True)


def run_command(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


FROM_SCANS_TO_MASKS = ("matching", "head", "refinement")


def parsed(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    return parser


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke training, started by the command of the README."""
    output = tmp_path_factory.mktemp("trained")
    done = run_command(
        "monai.bundle", "run", "training", "--config_file", str(["configs/train.yaml", "configs/smoke.yaml"]),
        "--output_dir", str(output), "--max_epochs", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (output / "stdout.txt").write_text(done.stdout)
    return output


def test_training_prints_dice_before_and_after(trained: Path) -> None:
    lines = (trained / "stdout.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("0 (untrained)")]
    assert [line for line in lines if line.startswith("2 ")]


def test_training_leaves_weights_checkpoint_log_table_masks_and_pictures(trained: Path) -> None:
    made = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    expected = {
        "model.pt", "checkpoints/last.pt", "log/training.csv", "dice.csv", "masks/phantom_03.nii.gz",
        "overlays/phantom_03.png", "masks/volumes.csv",
    }  # fmt: skip
    assert expected <= made
    assert any(name.startswith("log/events") for name in made)
    assert not [name for name in made if "tmp" in name]


def test_training_masks_lie_on_the_grid_of_their_scan(trained: Path) -> None:
    mask = nibabel.load(trained / "masks" / "phantom_03.nii.gz")
    scan = nibabel.load(trained / "phantom" / "images" / "phantom_03.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)


def test_the_same_seed_gives_bit_equal_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second = train(tmp_path / "a", num_workers=0), train(tmp_path / "b", num_workers=2)
    assert_equal_states(first, second)
    other = train(tmp_path / "c", seed=5)
    assert not torch.equal(first["encoder.localconv.weight"], other["encoder.localconv.weight"])


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    keys = {"epoch_length": 40, "max_epochs": 2, "val_interval": 2}
    expected = train(tmp_path / "whole", **keys)

    cut, words = tmp_path / "cut", [f"--{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "bundle", "training", f"--config_file={TRAIN}", f"--output_dir={cut}", *words]
    command[2:4] = ["monai.bundle", "run"]
    process = subprocess.Popen([*command, f"--bundle_root={ROOT}"], cwd=ROOT, stderr=subprocess.DEVNULL)
    last, deadline = cut / "checkpoints" / "last.pt", time.monotonic() + 120
    while time.monotonic() < deadline and not (last.is_file() and _step(last) > 45):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = _step(last)
    assert 45 < killed_at < 80, "the run must be killed in the middle of its second epoch"
    assert not (cut / "model.pt").exists()

    assert_equal_states(train(cut, resume=True, **keys), expected)
    rows = (cut / "log" / "training.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["20", "40", "60", "80"]


def _step(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["step"])


def test_a_finished_training_that_is_resumed_stays_as_it_is(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "again")
    expected = torch.load(trained / "model.pt", weights_only=True)
    assert_equal_states(train(tmp_path / "again", resume=True, max_epochs=2), expected)


def test_a_training_can_go_on_for_more_epochs(tmp_path: Path) -> None:
    expected = train(tmp_path / "once", max_epochs=2)
    train(tmp_path / "twice", max_epochs=1)
    assert_equal_states(train(tmp_path / "twice", max_epochs=2, resume=True), expected)


def test_a_network_that_draws_numbers_itself_resumes_exactly(tmp_path: Path) -> None:
    unet = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 8, "channels": [8, 16]}
    keys = {"network_def#encoder": unet | {"strides": [2], "dropout": 0.4}}
    workflow(TRAIN, tmp_path / "once", max_epochs=2, **keys).run()
    workflow(TRAIN, tmp_path / "twice", max_epochs=1, **keys).run()
    workflow(TRAIN, tmp_path / "twice", max_epochs=2, resume=True, **keys).run()
    once, twice = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("once", "twice"))
    assert_equal_states(once, twice)


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"seed": 5}, {"shots": 2}])
def test_a_training_with_other_settings_is_not_gone_on_with(change: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path)
    name, value = next(iter(change.items()))
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        train(tmp_path, resume=True, max_epochs=2, **change)
    assert _first_cause(caught.value).match(rf"{name} was .*, is {value}")


def test_weights_that_broke_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        workflow(TRAIN, tmp_path, learning_rate=1e30).run()
    assert _first_cause(caught.value).match("the loss must be finite|weights must be finite")
    assert not (tmp_path / "model.pt").exists()


def test_the_paper_protocol_is_a_key(tmp_path: Path) -> None:
    train(tmp_path, protocol="paper")
    assert (tmp_path / "dice.csv").read_text().count("phantom_03") == 2 * 3


def test_an_evaluation_leaves_the_table_of_the_training_alone(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "again")
    before = (tmp_path / "again" / "dice.csv").read_text()
    files = [*TRAIN, str(CONFIGS / "evaluate.yaml")]
    made = ConfigWorkflow(
        files,
        workflow_type="train",
        bundle_root=str(ROOT),
        output_dir=str(tmp_path / "again"),
        checkpoint=str(trained / "model.pt"),
        logging_file=str(CONFIGS / "logging.conf"),
    )
    made.run_id = "evaluating"
    made.initialize()
    made.run()
    assert (tmp_path / "again" / "dice.csv").read_text() == before
    cases = read_cases(tmp_path / "again" / "cases.csv")
    assert [(case["scan"], case["support"], case["organ"]) for case in cases] == [
        ("phantom_03", "phantom_02", organ) for organ in ("liver", "kidneys", "spleen")
    ]
    assert "phantom_03" in (tmp_path / "again" / "report.html").read_text()


def test_an_evaluation_within_a_training_is_that_of_the_written_weights(tmp_path: Path) -> None:
    """With frozen batch norm, and the fused optimizer that train.yaml ships, nothing but values tells of a step."""
    frozen = {"network_def#encoder#train_batch_norm": False}
    train(tmp_path / "t", max_epochs=2, epoch_length=4, val_interval=1, **frozen)
    keys = {"checkpoint": str(tmp_path / "t" / "model.pt"), "dataset_dir": str(tmp_path / "t" / "phantom")}
    workflow([*TRAIN, str(CONFIGS / "evaluate.yaml")], tmp_path / "e", **keys).run()
    rows = [line.split(",") for line in (tmp_path / "t" / "dice.csv").read_text().splitlines()[1:]]
    within, untrained = ({organ: dice for at, _, organ, dice in rows if at == epoch} for epoch in ("2", "0"))
    fresh = {case["organ"]: f"{float(case['dice']):.4f}" for case in read_cases(tmp_path / "e" / "cases.csv")}
    assert within == fresh
    assert within != untrained


def test_help_prints_the_keys_and_starts_nothing(tmp_path: Path) -> None:
    done = run_command("bundle", "training", "--help", "--output_dir", str(tmp_path))
    assert "max_epochs" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_batches_and_shots_are_keys(tmp_path: Path) -> None:
    assert train(tmp_path, batch_size=2, shots=2)["encoder.localconv.weight"].isfinite().all()


def test_ct_statistics_travel_from_training_to_inference(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "phantom": {"unlabeled": 2, "labeled": 2, "size": [64, 64, 6], "modality": "ct", "noise": 14.0},
        "intensity": {"_target_": "bundle.transforms.WindowCTd", "keys": "image"},
        "statistics": "training_set",
        "body_threshold": 0.0001,
    }
    train(tmp_path, **keys)
    numbers = json.loads((tmp_path / "intensity.json").read_text())
    assert 0 < numbers["mean"] < 255
    del keys["body_threshold"]
    workflow(INFER, tmp_path, checkpoint=str(tmp_path / "model.pt"), **keys).run()
    assert (tmp_path / "masks" / "phantom_03.nii.gz").is_file()


def test_training_works_from_another_folder_with_bundle_root(tmp_path: Path) -> None:
    done = run_command(
        "monai.bundle", "run", "training", f"--config_file={TRAIN}", f"--bundle_root={ROOT}",
        f"--output_dir={tmp_path / 'out'}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.pt").is_file()


def test_the_short_command_works_from_another_folder(tmp_path: Path) -> None:
    done = run_command(
        "bundle", "training", "--data", "smoke", "--output_dir", str(tmp_path / "out"), cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.pt").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("monai.bundle", "run", "training", "--config_file", "configs/train.yaml", "--max_epoch", "3"),
        ("bundle", "training", "--max_epoch", "3"),
    ],
)
def test_a_misspelt_key_is_reported(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run_command(*words, "--output_dir", str(tmp_path))
    assert done.returncode == 1
    assert "unknown key 'max_epoch' in the command" in done.stderr
    assert "Did you mean 'max_epochs'?" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def scans(trained: Path, tmp_path: Path) -> Path:
    """A folder of scans to segment: one good, one truncated."""
    folder = tmp_path / "scans"
    folder.mkdir()
    images = trained / "phantom" / "images"
    shutil.copy(images / "phantom_03.nii.gz", folder / "good scan.nii.gz")
    (folder / "broken.nii.gz").write_bytes((images / "phantom_01.nii.gz").read_bytes()[:2000])
    return folder


def support_of(trained: Path) -> dict[str, str]:
    phantom = trained / "phantom"
    return {
        "support_image": str(phantom / "images" / "phantom_02.nii.gz"),
        "support_label": str(phantom / "labels" / "phantom_02.nii.gz"),
    }


def test_one_bad_scan_is_named_and_does_not_stop_the_others(trained: Path, scans: Path, tmp_path: Path) -> None:
    keys = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out")} | support_of(trained)
    words = [f"--{key}={value}" for key, value in keys.items()]
    done = run_command("monai.bundle", "run", f"--config_file={INFER}", f"--bundle_root={ROOT}", *words)
    assert done.returncode == 1
    assert "broken.nii.gz" in done.stderr.splitlines()[-2]
    mask, scan = nibabel.load(tmp_path / "out/masks/good scan.nii.gz"), nibabel.load(scans / "good scan.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    trained: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "empty.nii.gz").touch()
    workflow(INFER, tmp_path / "out", dataset_dir=str(scans), dry_run="true", **support_of(trained)).run()
    lines = capsys.readouterr().out.splitlines()
    assert "3 scans: 2 to segment, 0 with a finished mask, 1 unusable" in lines
    assert not (tmp_path / "out" / "masks").exists()


def test_inference_finds_what_training_evaluated(trained: Path, tmp_path: Path) -> None:
    """The two roads to a mask, of training's evaluation and of inference, are the same road."""
    keys = {"dataset_dir": str(trained / "phantom"), "checkpoint": str(trained / "model.pt")} | support_of(trained)
    papers = {key: parsed("train.yaml")[key] for key in FROM_SCANS_TO_MASKS}
    workflow(INFER, tmp_path, **keys, **papers).run()
    assert_equal_masks(tmp_path, trained)


def test_inference_finds_what_the_preset_for_one_annotated_scan_evaluates(trained: Path, tmp_path: Path) -> None:
    keys = {"dataset_dir": str(trained / "phantom"), "checkpoint": str(trained / "model.pt")}
    workflow(INFER, tmp_path / "one", annotated="all", **keys, **support_of(trained)).run()
    files = [*TRAIN, str(CONFIGS / "evaluate.yaml"), str(CONFIGS / "preset_annotate_one.yaml")]
    workflow(files, tmp_path / "other", **keys).run()
    assert_equal_masks(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("padding", [((0, 0), (0, 0), (5, 7)), ((20, 90), (0, 60), (0, 0))], ids=["slices", "plane"])
def test_a_padded_scan_has_the_same_mask(padding: tuple[tuple[int, int], ...], trained: Path, tmp_path: Path) -> None:
    scan = nibabel.load(trained / "phantom" / "images" / "phantom_03.nii.gz")
    values = np.asarray(scan.dataobj)
    padded = np.pad(values, padding, constant_values=values.min() - 1)
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, scan.affine), tmp_path / "scans" / "plain.nii.gz")
    nibabel.save(nibabel.Nifti1Image(padded, scan.affine), tmp_path / "scans" / "padded.nii.gz")
    keys = {"dataset_dir": str(tmp_path / "scans"), "checkpoint": str(trained / "model.pt")} | support_of(trained)
    workflow(INFER, tmp_path, **keys).run()
    plain, wide = (np.asarray(nibabel.load(tmp_path / "masks" / f"{n}.nii.gz").dataobj) for n in ("plain", "padded"))
    assert plain.any()
    np.testing.assert_array_equal(wide, np.pad(plain, padding))


def test_a_file_of_prototypes_stands_for_the_annotated_scan(trained: Path, tmp_path: Path) -> None:
    """Encoded by one command, used by another without the image, and refused for other weights and another grid."""
    keys: dict[str, Any] = {"checkpoint": str(trained / "model.pt"), "dataset_dir": str(trained / "phantom")}
    words = [f"--{key}={value}" for key, value in (support_of(trained) | {"output_dir": str(tmp_path)}).items()]
    done = run_command("bundle", "encoding", "--data=smoke", *words, f"--checkpoint={keys['checkpoint']}")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "prototypes.safetensors"
    assert f"prototypes of the annotated scans: {file}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prototypes.json", "prototypes.safetensors"]

    workflow(INFER, tmp_path / "image", **keys, **support_of(trained)).run()
    workflow(INFER, tmp_path / "file", **keys, prototypes=str(file)).run()
    assert_equal_masks(tmp_path / "image", tmp_path / "file")
    picture = Image.open(tmp_path / "file" / "overlays" / "phantom_03.png")
    with_support = Image.open(tmp_path / "image" / "overlays" / "phantom_03.png")
    assert picture.height == with_support.height
    assert picture.width < with_support.width  # there is no image of the support

    for name, change in (("encoder", {"checkpoint": None}), ("preprocessing", {"slice_size": [64, 80]})):
        with pytest.raises((RuntimeError, ValueError), match=r"\w") as caught:
            workflow(INFER, tmp_path / name, **(keys | {"prototypes": str(file)} | change)).run()
        assert _first_cause(caught.value).match(f"were made with another {name}") is not None
        assert not (tmp_path / name / "masks").exists()


def test_scans_are_ranked_for_annotation_first_without_and_then_with_an_annotated_one(
    trained: Path, tmp_path: Path
) -> None:
    keys = {"dataset_dir": str(trained / "phantom" / "images"), "checkpoint": str(trained / "model.pt")}
    lines = {}
    for name, support in (("first", {}), ("next", support_of(trained))):
        words = [f"--{key}={value}" for key, value in (keys | support | {"output_dir": str(tmp_path / name)}).items()]
        done = run_command("bundle", "ranking", "--data=smoke", *words)
        assert done.returncode == 0, done.stderr
        lines[name] = (tmp_path / name / "next_scan.csv").read_text().splitlines()
    scans = {path.name.removesuffix(".nii.gz") for path in (trained / "phantom" / "images").iterdir()}
    assert [lines["first"][0], lines["next"][0]] == ["scan,similarity", "scan,quality"]
    assert {line.split(",")[0] for line in lines["first"][1:]} == scans
    assert {line.split(",")[0] for line in lines["next"][1:]} == scans - {"phantom_02"}
    assert not (tmp_path / "next" / "masks").exists()


def assert_equal_masks(one: Path, other: Path) -> None:
    masks = [nibabel.load(folder / "masks" / "phantom_03.nii.gz").get_fdata() for folder in (one, other)]
    np.testing.assert_array_equal(*masks)
    assert masks[0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"support_label": None}, "support_image and support_label must have equal numbers of files"),
        ({"support_label": None, "support_image": None}, "no annotated scan was given"),
        ({"support_image": "none.nii.gz"}, "none.nii.gz: there is no such image file"),
        ({"dataset_dir": "nowhere"}, "dataset_dir nowhere does not exist"),
        ({"organs": {"heart": 9}}, r"heart \(id 9\) has no voxel"),
        ({"checkpoint": "none.pt"}, "no weights at none.pt"),
    ],
)
def test_inference_refuses_bad_input(change: dict[str, Any], message: str, trained: Path, tmp_path: Path) -> None:
    keys = {"dataset_dir": str(trained / "phantom" / "images")} | support_of(trained) | change
    with pytest.raises((RuntimeError, ValueError, FileNotFoundError), match=r"\w") as caught:
        workflow(INFER, tmp_path / "out", **keys).run()
    assert _first_cause(caught.value).match(message) is not None
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_dir": "nowhere"}, "dataset_dir nowhere does not exist"),
        ({"shots": 0}, "shots must be a whole number of support views"),
        ({"network_def#foreground#window": 0}, "window must be a whole number"),
        ({"network_def#background#min_coverage": 1.5}, r"min_coverage, a share of the cell, must be in \[0, 1\)"),
        ({"body_threshold": 1e6}, "no slice of the 2 scans has a superpixel"),
        ({"network_def#encoder#weights": "none.pth"}, "no weights at none.pth"),
        ({"fold": 7}, "5 folds need at least as many annotated scans"),
    ],
)
def test_training_refuses_bad_input(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, ValueError, FileNotFoundError), match=r"\w") as caught:
        workflow(TRAIN, tmp_path, **change).run()
    assert _first_cause(caught.value).match(message) is not None
    assert not (tmp_path / "model.pt").exists()


def _first_cause(error: BaseException) -> Any:
    while error.__cause__ is not None:
        error = error.__cause__
    return pytest.ExceptionInfo.from_exception(error)


@pytest.mark.parametrize("files", [TRAIN, INFER], ids=["train", "inference"])
def test_monais_properties_are_all_there(files: list[str], tmp_path: Path) -> None:
    assert workflow(files, tmp_path).check_properties() == []


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_parses_and_its_keys_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [name] if name in ("train.yaml", "inference.yaml") else ["train.yaml", name]
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / file) for file in files])
    assert "network_def" in parser
    check_command(["monai.bundle", "--config_file", str([str(CONFIGS / file) for file in files])])


def test_training_and_inference_agree_on_the_network_and_the_grid() -> None:
    parsers = []
    for name in ("train.yaml", "inference.yaml"):
        parsers.append(ConfigParser())
        parsers[-1].read_config(str(CONFIGS / name))
    for parser in parsers:
        parser["network_def::encoder::train_batch_norm"] = None  # of training alone
        parser["network_def::encoder::weights"] = None
        parser["standardization::statistics"] = None  # training writes them
    grid = ("orientation", "slice_axis", "spacing", "padding", "intensity", "statistics", "standardization")
    for key in ("network_def", *grid, "phantom"):
        assert parsers[0][key] == parsers[1][key], key


def test_inference_is_what_the_preset_for_one_annotated_scan_makes_of_training() -> None:
    inference, preset = parsed("inference.yaml"), parsed("train.yaml", "preset_annotate_one.yaml")
    inference["refinement::transforms::2::num_components"] = inference["num_components"]  # a key of its own there
    assert [inference[key] for key in FROM_SCANS_TO_MASKS] == [preset[key] for key in FROM_SCANS_TO_MASKS]


def test_the_papers_preset_makes_inference_what_training_is() -> None:
    inference, train_config = parsed("inference.yaml", "preset_paper.yaml"), parsed("train.yaml")
    assert [inference[key] for key in FROM_SCANS_TO_MASKS] == [train_config[key] for key in FROM_SCANS_TO_MASKS]


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
def test_the_papers_preset_standardizes_the_whole_volume_by_its_z_score(name: str) -> None:
    parser = parsed(name, "preset_paper.yaml")
    assert parser["padding"] == {"_target_": "Compose", "transforms": []}
    assert [parser["standardization"][key] for key in ("method", "region")] == ["zscore", "volume"]
    assert not {"center", "spread"} & set(parser["standardization"])


def test_run_and_training_are_the_same_item() -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    assert parser["training"] == "@run"  # a copy would train twice in MONAI Label


def test_the_network_fits_its_metadata() -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        device="cpu",
    )


def test_the_metadata_is_valid(tmp_path: Path) -> None:
    if not SCHEMA.is_file():
        pytest.skip("the schema is MONAI's and lies beside the checkout only; verify_metadata downloads it elsewhere")
    shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(
        meta_file=str(ROOT / "metadata.json"),
        filepath=str(tmp_path / "schema.json"),
        hash_val="06954cad2cc5d3784e72077ac76f0fc8",
        hash_type="md5",
    )


def test_the_trained_network_exports_to_torchscript(trained: Path, tmp_path: Path) -> None:
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(trained / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=INFER,
    )
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    assert scripted(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)
