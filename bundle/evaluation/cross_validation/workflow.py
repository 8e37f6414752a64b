"""The configs of a cross-validation and its units -> the commands that run each unit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.command_line.checks import refuse_missing_device
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import ROOT, config_paths
from bundle.files import read_json, safe_name
from bundle.provenance import file_record
from bundle.root import module_command
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

PROTOCOLS = ("paper", "volume")

EVALUATE = str(ROOT / "configs" / "evaluate.yaml")

# Keys that may change when a cross-validation is resumed: they affect no result, or each unit sets its own.
NOT_SETTINGS = (
    *("bundle_root", "output_dir", "cache_dir", "ckpt_dir", "dataset_dir", "device", "num_workers", "resume"),
    *("fold", "seed", "protocol", "test_organs", "val_interval", "checkpoint_interval"),
    *(
        "keep_interval",
        "published",
        "dataset_name",
        "method",
        "group",
        "steps",
        "phantom",
        "imports",
        "initialize",
        "_meta_",
    ),
)


@dataclass(frozen=True)
class Unit:
    """One training and its evaluation.

    Attributes:
        root: The cross-validation's folder.
        group: Name of the test organs in setting 2, ``""`` in setting 1.
        organs: Names and ids of the organs that are evaluated.
        fold: The fold that is held out.
        seed: Random seed of the training.
        scans: How many scans each evaluation segments.
    """

    root: Path
    group: str
    organs: Mapping[str, int]
    fold: int
    seed: int
    scans: int = 0

    @property
    def name(self) -> str:
        """The unit's name in messages."""
        return str(self.folder.relative_to(self.root))

    @property
    def folder(self) -> Path:
        """Where the unit's files go."""
        return self.root / safe_name(self.group) / f"fold_{self.fold}" / f"seed_{self.seed}"

    @property
    def done(self) -> bool:
        """Whether the unit has all its tables; each is written whole, at the end of its evaluation."""
        return all((self.folder / protocol / "cases.csv").is_file() for protocol in PROTOCOLS)

    @property
    def step(self) -> int:
        """The last step in the training's log."""
        log = self.folder / "log" / "training.csv"
        last = log.read_text(encoding="utf-8").rstrip().rsplit("\n", 1)[-1] if log.is_file() else ""
        step = last.split(",")[0]
        return int(step) if step.isdigit() else 0

    @property
    def segmented(self) -> int:
        """How many masks the evaluations have written."""
        masks = (len(list((self.folder / protocol / "masks").glob("*.nii.gz"))) for protocol in PROTOCOLS)
        return sum(min(count, self.scans) for count in masks)


class Workflow:
    """The configs of a cross-validation and the keys of its command -> the commands of its units.

    Args:
        configs: Names in ``configs/`` or paths of the override files that come after ``train.yaml``.
        keys: Further keys, as ``monai.bundle run`` takes them.
        setting: 1, 2 or ``"legacy_all"``.
        untrained: Evaluate the initial weights, without training.
        weights_of: Evaluate the weights of this finished cross-validation, unit by unit, without training.

    Raises:
        ValueError: If a config or a key does not exist, or both ``untrained`` and ``weights_of`` are given.
    """

    def __init__(
        self,
        configs: Sequence[str],
        keys: Mapping[str, Any],
        setting: Any,
        untrained: bool,
        weights_of: Path | None = None,
    ) -> None:
        if untrained and weights_of is not None:
            raise ValueError(
                "untrained and weights_of exclude each other: trained weights cannot be untrained. Give one of them."
            )
        paths = config_paths("train", configs)
        self.files = [str(path) for path in paths]
        self.keys = {"bundle_root": str(ROOT), **keys, "setting": setting}
        self.untrained = untrained
        self.weights_of = weights_of
        refuse_unknown_keys([*paths, Path(EVALUATE)], self.keys)
        check_merged([*paths, Path(EVALUATE)], self.keys)
        self.parser = _parsed(self.files, self.keys)
        self.evaluation = _parsed([*self.files, EVALUATE], self.keys)
        refuse_missing_device(self.get("device", "cpu"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value, resolved."""
        return self.parser.get_parsed_content(key) if key in self.parser.get() else default

    def settings(self) -> dict[str, str]:
        """Return every setting that can change a result, flat; a file is described by its content, not its path."""
        configs = {**self.evaluation.get(), "network_def": self.parser.get().get("network_def")}
        config = {key: value for key, value in configs.items() if key not in NOT_SETTINGS}
        taken = {} if self.weights_of is None else {"weights_of": self.weights_of.resolve().name}
        return taken | {key: _portable(value) for key, value in sorted(_flat(config))}

    @property
    def steps(self) -> int:
        """Steps of one training."""
        return 0 if self.untrained or self.weights_of else int(self.get("max_epochs")) * int(self.get("epoch_length"))

    @property
    def trained_steps(self) -> int | None:
        """Steps of the training whose weights are evaluated; ``None`` if they are not known."""
        if self.weights_of is None:
            return self.steps
        path = self.weights_of / "settings.json"
        settings = read_json(path, "Choose another weights_of.", ["settings"])["settings"] if path.is_file() else {}
        numbers = [str(settings.get(key)) for key in ("max_epochs", "epoch_length")]
        return math.prod(map(int, numbers)) if all(number.isdigit() for number in numbers) else None

    def values(self) -> dict[str, str]:
        """Return the settings for a reader: evaluated expressions, and no references to other parts."""
        config = self.evaluation.get()
        expressions = [key for key, value in config.items() if str(value).startswith("$") and key not in NOT_SETTINGS]
        values = {key: str(self.evaluation.get_parsed_content(key)) for key in expressions}
        plain = {key: value for key, value in self.settings().items() if not set("$@%") & set(value)}
        return plain | {key: value for key, value in values.items() if os.sep not in value}

    def commands(self, unit: Unit, cache_dir: Path, method: str) -> Iterator[list[str]]:
        """Yield the commands of a unit in order; those that are done already are left out."""
        own: dict[str, Any] = {"fold": unit.fold, "seed": unit.seed, "cache_dir": str(cache_dir)}
        if unit.group:
            own["test_organs"] = list(unit.organs)
        training = {**own, "output_dir": str(unit.folder), "resume": True, "validate#dataset#enabled": False}
        trained = unit.folder
        if self.weights_of is not None:
            trained = self.weights_of / unit.name
        elif not self.untrained:
            yield self._training(training)
        elif self.get("statistics") == "training_set":  # one step with learning rate 0 writes the intensity statistics
            yield self._training({**training, "max_epochs": 1, "epoch_length": 1, "learning_rate": 0.0})
        evaluated = {**own, "organs": dict(unit.organs), "ckpt_dir": str(trained), "method": method}
        evaluated["steps"] = self.trained_steps
        if self.untrained:
            # evaluate.yaml does not load the initial weights, since trained ones replace them.
            start = self.parser.get_parsed_content("network_def::encoder::weights")
            evaluated |= {"checkpoint": None, "network_def#encoder#weights": start}
        for protocol in PROTOCOLS:
            folder = unit.folder / protocol
            if not (folder / "cases.csv").is_file():
                of_protocol = {"protocol": protocol, "group": unit.group, "output_dir": str(folder)}
                yield _command("evaluating", [*self.files, EVALUATE], {**self.keys, **evaluated, **of_protocol})

    def _training(self, keys: Mapping[str, Any]) -> list[str]:
        of_training = {key: value for key, value in self.keys.items() if _top(key) in self.parser.get()}
        return _command("training", self.files, {**of_training, **keys})


def method_name(configs: Sequence[str], untrained: bool = False, weights_of: Path | None = None) -> str:
    """Return the default name of a method: its presets, and the origin of its weights."""
    presets = [Path(name).stem.removeprefix("preset_") for name in configs if "preset_" in name]
    start = "untrained" if untrained else f"weights of {weights_of.resolve().name}" if weights_of else ""
    words = [word.replace("_", " ") for word in (*presets, start) if word]
    return f"ALPNet ({', '.join(words)})" if words else "ALPNet"


def _command(run_id: str, files: Sequence[str], keys: Mapping[str, Any]) -> list[str]:
    return [*module_command("monai.bundle"), "run", run_id, "--config_file", str(list(files)), *_as_words(keys)]


def _parsed(files: Sequence[str], keys: Mapping[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(files)
    known = {key: value for key, value in keys.items() if _top(key) in parser.get()}
    parser.update({key.replace("#", "::"): value for key, value in known.items()})
    return parser


def _top(key: str) -> str:
    return key.replace("#", "::").split("::")[0]


def _as_words(keys: Mapping[str, Any]) -> list[str]:
    """Format keys as words of the command line of monai.bundle."""
    return [word for key, value in keys.items() for word in (f"--{key}", _as_word(value))]


def _as_word(value: Any) -> str:
    if value is None:
        return "$None"
    # A text that looks like a number or a list, such as a folder named 2026, is put in quotes.
    is_other = isinstance(value, str) and DefaultParseValue(value) != value
    return repr(value) if is_other else str(value)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}::{key}" if name else str(key))
    else:
        yield name, value


def _portable(value: Any) -> str:
    is_file = isinstance(value, str) and len(value) < 1000 and Path(value).is_file()
    return file_record(value) if is_file else str(value)
