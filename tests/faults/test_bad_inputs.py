"""Bad inputs over all commands: each ends in one sentence and an exit code, and nothing is half-written.

A short part runs by default, every case with ALPNET_FAULTS=full.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.__main__ import VERBS, main
from bundle.command_line.configs import ROOT
from bundle.command_line.values import KINDS
from bundle.data.phantoms import write_phantoms

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

FULL = os.environ.get("ALPNET_FAULTS") == "full"

WORDS: list[str] = [
    "trainin", "TRAINING", "run", "--data", "-x", "predict --dataset_dir scans",
    *(f"{verb} --max_epoch 3" for verb in ("training", "inference", "encoding", "ranking", "evaluating")),
    *(f"{verb} scans" for verb in ("training", "inference", "encoding", "ranking", "evaluating", "annotation_order")),
    *(f"training --{key}" for key in ("data", "configs", "fold", "output_dir", "max_epochs", "args_file")),
    *(f"training --{key} x" for key in ("config_file", "run_id", "init_id", "final_id", "workflow_type")),
    "training --", "training - --fold 0", "training --fold=0 -- --trace", "inference --help_me", "training --lr 0.1",
    "inference --max_epochs 3", "training --train 3", "training --run x", "inference --refinement maybe",
    "training --args_file none.json", "training --args_file empty.yaml", "training --meta_file none.json",
    "training --logging_file none.conf", "training --tracking none.json",
    *(f"{verb} {word}" for verb in ("cross_validation", "prepare", "export", "benchmark") for word in ("x", "--x")),
    "cross_validation run", "cross_validation run --configs smoke", "cross_validation compare --runs none",
    "cross_validation run --configs smoke --dataset_dir nowhere --output_dir out",
    *(
        f"cross_validation run --configs smoke --dataset_dir scans --output_dir out {more}"
        for more in (
            "--folds 7", "--folds all", "--seeds []", "--jobs 0", "--jobs x", "--setting 3", "--setting 2",
            "--untrained maybe", "--weights_of nowhere", "--max_epoch 3", "--max_epochs x", "--epoch_length 0",
            "--fold 1", "--train#trainer#max_epoch 3", "--statistics foo", "--device tpux",
        )
    ),
    "cross_validation compare --output_dir out", "cross_validation compare --runs scans --output_dir out",
    "annotation_order", "annotation_order --dataset_dir nowhere",
    *(
        f"annotation_order --dataset_dir scans {more}"
        for more in (
            "--annotated 0", "--annotated 1.5", "--annotated 40", "--orders x", "--seed -1", "--configs nope",
            "--device tpux", "--slice_batch a", "--parts#x 3", "--output_dir 5",
        )
    ),
    "drawn_slices", "drawn_slices --dataset_dir nowhere", "drawn_slices scans",
    *(
        f"drawn_slices --dataset_dir scans {more}"
        for more in ("--numbers x", "--folds 9", "--scans x", "--configs nope", "--max_epochs 3", "--output_dir 5")
    ),
    "prepare chaos", "prepare chaos --source nowhere --target out", "prepare chaos --source scans --target out",
    "prepare btcv --source scans", "prepare btcv --source scans --target out",
    "prepare mscmr --source scans --target out",
    "prepare nifti --source empty --target out", "prepare nifti --source 5 --target out",
    *(
        f"prepare nifti --source scans --target out {more}"
        for more in ("--size 3", "--spacing 1", "--organs liver", "--modality us", "--labels nowhere", "--unlabeled x")
    ),
    *(
        f"export encoder {more}"
        for more in (
            "--format trt", "--output a.txt", "--output 5", "--output empty.yaml/a.onnx", "--checkpoint none.pt",
            "--configs nope", "--network_def#encoder#depht 18", "--network_def#encoder#depth 7", "--formt onnx",
        )
    ),
    *(
        f"benchmark {more}"
        for more in (
            "all --quik", "all --repeats 0", "all --seed -1", "all --device tpux", "all --output_dir empty.yaml",
            "inference --encoders vgg", "inference --matching mine", "inference --organs none", "memory --organs x",
            "superpixels --dataset_dir nowhere --quick", "training --steps 0 --quick", "startup --threads 0",
        )
    ),
]  # fmt: skip

PARTS = [
    "training --train#trainer#max_epoch 3", "training --trian#trainer#max_epochs 3", "training --train#trainr#amp true",
    "training --head#classifier#k 3", "training --train#handlers#99#x 1", "training --train#handlers#x 1",
    "training --phantom#labelled 3", "training --segmenter#sigmaa 2", "training --network_def#encoder#dept 18",
    "training --network_def#encoder {_target_: bundle.networks.Nope}", "training --fold#x 3",
    "inference --inferer#slice_batc 3", "inference --head#classifier#kk 3", "inference --matching#slices 0",
    "inference --matching {_target_: bundle.inference.matching.SliceMatching, slicez: 3}",
    "evaluating --validate#table#methodd x", "training --learning_rate $1/0", "training --learning_rate $nope",
    "training --learning_rate @nope", "inference --device tpux", "inference --device cuda:99", "training --device 5",
    *(f"{verb} --device {name}" for verb in ("inference", "training") for name in ("CudA", "MPS", "meta", "cuda:7")),
]  # fmt: skip

# Config files, with what is wrong in them as their name.
FILES = {
    "none.yaml": None,
    "empty.yaml": b"",
    "list.yaml": b"- 1\n- 2\n",
    "word.yaml": b"hello\n",
    "broken.yaml": b"a: [1, 2\nb: }\n",
    "tabs.yaml": b"a:\n\t- 1\n",
    "binary.yaml": bytes(range(128, 256)),
    "broken.json": b'{"a": 1',
    "config.txt": b"max_epochs: 1\n",
    "misspelt.yaml": b"max_epoch: 3\n",
    "numbers.yaml": b"1: 2\n",
    "cyclic.yaml": b"device: '@seed'\nseed: '@device'\n",
    "part.yaml": b"network_def::encoder::dept: 18\n",
    "kind.yaml": b"slice_size: [a, b]\n",
}

CONFIG_FILES = [
    command.format(name)
    for command in (
        "training --configs {}", "inference --data {}", "evaluating --configs smoke,{}",
        "cross_validation run --configs {} --dataset_dir scans --output_dir out",
        "annotation_order --dataset_dir scans --annotated 1 --configs {}", "export encoder --configs {}",
    )
    for name in FILES
    if not (name == "cyclic.yaml" and command.startswith("export"))  # it needs neither of the two
]  # fmt: skip

# Wrong values by how the rule of their kind begins.
WRONG: dict[str, list[str]] = {
    "a whole": ["a", "1.5", "-1", "True", "[1,2]", "$'a'"],
    "a number": ["a", "-1", "[1]"],
    "a finite": ["a", "[1]"],
    "one of": ["foo", "9"],
    "a path": ["5", "True", "{a:1}"],
    "a text": ["5", "[1]"],
    "true or": ["maybe", "2"],
    "True or": ["maybe", "2"],
    "names and": ["5", "{liver:0}", "{liver:1.5}", "{a:1,b:1}"],
    "a list": ["5", "liver"],
    "two whole": ["['a','b']", "[0,0]", "64", "[64,64,64]"],
    "three num": ["[1,2]", "[0,1,1]", "wide"],
    "axis": ["up", "PLX", "5"],
    "a name": ["5", "{a:1}"],
    "the number": ["1.5", "True", "[1,2]", "{a:1}"],
}


def kinds() -> list[str]:
    """Return a command for every key of the table and every wrong value of its kind."""
    of_inference = (ROOT / "configs" / "inference.yaml").read_text()
    of_evaluate = (ROOT / "configs" / "evaluate.yaml").read_text()
    commands = []
    for key, kind in KINDS.items():
        start = next(rule for rule in WRONG if kind.rule.startswith(rule))
        verbs = [("inference", of_inference), ("evaluating", of_evaluate)]
        verb = next((verb for verb, text in verbs if re.search(rf"^{key}:", text, re.MULTILINE)), "training")
        commands += [f"{verb} --{key} {shlex.quote(value)}" for value in WRONG[start] if not value.startswith("$")]
    return commands


# What inference reads: folders, annotated scans, files of prototypes, weights.
DATA = [
    "--dataset_dir nowhere", "--dataset_dir empty", "--dataset_dir empty.yaml", "--support_dir nowhere",
    "--support_dir empty", "--support_image scans/images/phantom_00.nii.gz", "--support_label x.nii.gz",
    "--support_image none.nii.gz --support_label none.nii.gz", "--organs {moon: 9}",
    "--prototypes none.safetensors", "--prototypes damaged.safetensors", "--prototypes empty.yaml",
    "--checkpoint none.pt", "--checkpoint scans", "--checkpoint truncated.pt", "--checkpoint empty.pt",
    "--checkpoint pointer.pt", "--checkpoint foreign.pt", "--checkpoint other.pt", "--checkpoint list.pt",
]  # fmt: skip

INPUTS = [f"inference --configs smoke {words}" for words in DATA]

COMMANDS = list(dict.fromkeys([*WORDS, *PARTS, *CONFIG_FILES, *kinds(), *INPUTS]))
SHORT = COMMANDS if FULL else COMMANDS[::6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of all commands, with the bad files."""
    folder = tmp_path_factory.mktemp("bad_inputs")
    for name, content in FILES.items():
        if content is not None:
            (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    write_phantoms(folder / "scans", unlabeled=0, labeled=5, size=(64, 64, 6))
    weights = (ROOT / "models" / "model.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(weights[: len(weights) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "foreign.pt").write_bytes(pickle.dumps(Path("x")))
    (folder / "damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0damaged!" * 3)
    torch.save({"weight": torch.zeros(3)}, folder / "other.pt")
    torch.save([1, 2], folder / "list.pt")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder; what configs set for the whole process is the test's own."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MONAI_DEBUG", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["pytest"])


def contents(folder: Path) -> dict[str, Any]:
    """What every file of a folder holds; folders by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("command", SHORT)
def test_a_bad_input_is_one_sentence_and_nothing_is_written(command: str, folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command))
    said = stop.value.code
    assert isinstance(said, str), f"the exit code was {said}"  # a text is printed, and the code is 1
    sentence = said.removesuffix("\n(MONAI_DEBUG=1 shows the traceback)")
    assert sentence != said
    assert sentence.startswith("error: ")
    assert len(sentence) < 1500
    assert contents(folder) == before


def test_there_are_enough_bad_inputs_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) >= 200
    assert {command.split()[0] for command in COMMANDS} >= set(VERBS)
    with capsys.disabled():
        print(f"\n{len(SHORT)} of {len(COMMANDS)} bad inputs are run")
