"""The valid values of the configs' keys: one table, checked before any work starts.

key and value  ->  kind: a rule, an example  ->  nothing, or one sentence

``initialize`` checks the values of both configs; those that a command sets are checked before MONAI is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundle.command_line.checks import refuse_missing_device


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        rule: What follows "must be" in a message.
        example: A value of the kind, as it is typed.
        accepts: Returns whether a value is of the kind.
    """

    rule: str
    example: str
    accepts: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """Return the kind that accepts null, too."""
        return replace(self, rule=f"{self.rule}, or null", accepts=lambda value: value is None or self.accepts(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_path(value: Any) -> bool:
    return _is_text(value) or isinstance(value, os.PathLike)


def _is_sequence(value: Any, length: int | None, accepts: Callable[[Any], bool]) -> bool:
    fits = isinstance(value, list | tuple) and length in (None, len(value))
    return fits and all(accepts(one) for one in value)


def _are_organs(value: Any) -> bool:
    ids = list(value.values()) if isinstance(value, Mapping) else []
    return bool(ids) and len(set(map(repr, ids))) == len(ids) and all(_is_whole(organ) and organ > 0 for organ in ids)


def _is_spacing(value: Any) -> bool:
    return value == "fit" or _is_sequence(value, 3, lambda mm: _is_number(mm) and (mm > 0 or mm == -1))


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or str(value).lower() in ("true", "false")


def _whole(low: int, high: int | None = None) -> Kind:
    rule = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Kind(rule, str(low), lambda value: _is_whole(value) and value >= low and (high is None or value <= high))


def _choice(*values: Any) -> Kind:
    # By type as well, since True equals 1.
    known = {(type(value), value) for value in values}
    return Kind(
        f"one of {', '.join(map(str, values))}",
        str(values[0]),
        lambda value: isinstance(value, int | str) and (type(value), value) in known,
    )


COUNT, FROM_ZERO = _whole(1), _whole(0)
NUMBER = Kind("a finite number", "0.5", _is_number)
POSITIVE = Kind("a number above 0", "1.0", lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = Kind("a number of at least 0", "0.001", lambda value: _is_number(value) and value >= 0)
STATISTICS = Kind(
    "a path, or a mean and a standard deviation",
    "\"{'mean': 60.0, 'std': 70.0}\"",
    lambda value: _is_path(value) or (isinstance(value, Mapping) and set(value) == {"mean", "std"}),
)
TEXT = Kind("a text", "mine", _is_text)
PATH = Kind("a path (a name that is a number as ./2026)", "./folder", _is_path)
PATHS = Kind(
    "a path or a list of paths", "\"['a','b']\"", lambda value: _is_path(value) or _is_sequence(value, None, _is_path)
)
SWITCH = Kind("true or false", "true", _is_switch)
TRUTH = Kind("True or False, with a capital", "True", lambda value: isinstance(value, bool))
DEVICE = Kind("a name such as cpu or cuda:0", "cpu", lambda value: not isinstance(value, bool | int | float | Mapping))
ORGANS = Kind("names and different ids above 0", '"{liver: 1, spleen: 2}"', _are_organs)
NAMES = Kind("a list of names", '"[liver, spleen]"', lambda value: _is_sequence(value, None, _is_text))
SERIES = Kind(
    "the number, description or SeriesInstanceUID of a series", "4", lambda value: _is_whole(value) or _is_text(value)
)
SIZE = Kind(
    "two whole numbers of pixels, rows and columns, at least 16",
    '"[256, 256]"',
    lambda value: _is_sequence(value, 2, lambda pixels: _is_whole(pixels) and pixels >= 16),
)
SPACING = Kind("three numbers in mm (-1 keeps) or fit", "fit", _is_spacing)
AXES = Kind(
    "axis codes of rows, columns and slices",
    "PLS",
    lambda value: _is_text(value) and len(value) == 3 and all(set(pair) & set(value) for pair in ("LR", "PA", "SI")),
)

# Key -> its kind. Other keys are free, or checked where they are used.
KINDS: dict[str, Kind] = {
    # data
    "dataset_dir": PATH.or_null(),
    "dataset_name": TEXT,
    "output_dir": PATH,
    "cache_dir": PATH,
    "ckpt_dir": PATH,
    "bundle_root": PATH,
    "results_root": PATH,
    "statistics_file": STATISTICS.or_null(),
    "weights": PATH.or_null(),
    "fold": _whole(0, 4).or_null(),
    "support_scans": COUNT,
    "organs": ORGANS.or_null(),
    "dataset_organs": ORGANS,
    "setting": _choice(1, 2, "legacy_all"),
    "test_organs": NAMES.or_null(),
    "orientation": AXES.or_null(),
    "slice_axis": _whole(0, 2),
    "spacing": SPACING.or_null(),
    "slice_size": SIZE,
    "statistics": _choice("volume", "training_set"),
    "body_threshold": NUMBER.or_null(),
    "superpixel_size": COUNT,
    # training
    "max_epochs": COUNT,
    "epoch_length": COUNT,
    "batch_size": COUNT,
    "shots": COUNT,
    "learning_rate": NOT_NEGATIVE,
    "seed": FROM_ZERO,
    "resume": SWITCH,
    "amp": SWITCH,
    "compile": SWITCH,
    "num_workers": FROM_ZERO,
    "device": DEVICE,
    "val_interval": COUNT,
    "checkpoint_interval": COUNT,
    "keep_interval": FROM_ZERO,
    # evaluation
    "protocol": _choice("volume", "paper"),
    "overlap": TRUTH,
    "method": TEXT,
    "nsd_tolerance": POSITIVE,
    # inference
    "support_dir": PATH.or_null(),
    "support_image": PATHS.or_null(),
    "support_label": PATHS.or_null(),
    "channel": FROM_ZERO,
    "series": SERIES.or_null(),
    "annotated": _choice("auto", "drawn", "all"),
    "ignore_value": _whole(1).or_null(),
    "prototypes": PATHS.or_null(),
    "prototypes_file": PATH,
    "checkpoint": PATH.or_null(),
    "num_components": COUNT.or_null(),
    "dry_run": SWITCH,
    "output_format": _choice("nifti", "seg.nrrd", "dicom_seg", "per_organ"),
    "probabilities": SWITCH,
    "least_explained": POSITIVE.or_null(),
    "precision": _choice("float32", "bfloat16"),
    "slice_batch": COUNT,
    "support_roots": PATHS,
}


def check_values(**values: Any) -> None:
    """Raise if a key of a config has a value of the wrong kind, or the device does not exist.

    Args:
        **values: Keys and their values; keys that are not in the table pass.

    Raises:
        ValueError: With the first wrong key, its rule, its value and an example.
    """
    for key, value in values.items():
        kind = KINDS.get(key)
        if kind is not None and not kind.accepts(value):
            raise ValueError(f"{key} must be {kind.rule}, got {value!r}. Write, for example, --{key} {kind.example}.")
    if "device" in values:
        refuse_missing_device(values["device"])


def check_literals(config: Mapping[str, Any]) -> None:
    """Check the keys of a config, except components and expressions.

    Raises:
        ValueError: As ``check_values`` does.
    """
    made = {key for key, value in config.items() if is_expression(value) or is_component(value)}
    check_values(**{key: value for key, value in config.items() if key not in made and key != "device"})


def is_component(value: Any) -> bool:
    """Return whether a part of a config is an object that MONAI makes, or a function that it calls."""
    return isinstance(value, Mapping) and "_target_" in value


def refuse_bare(keys: Iterable[str]) -> None:
    """Raise if a key has no value and is not a switch; parts of a config, as ``a#b``, pass.

    Raises:
        ValueError: With the first such key.
    """
    for key in keys:
        if "#" not in key and "::" not in key and KINDS.get(key) not in (SWITCH, TRUTH):
            raise ValueError(f"--{key} has no value. Write --{key} <value>.")


def is_expression(value: Any) -> bool:
    """Return whether MONAI evaluates a value before it is used."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))
