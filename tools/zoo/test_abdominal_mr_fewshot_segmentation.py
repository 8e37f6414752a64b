"""Every config of the bundle on phantoms, for the model zoo's CI: it runs this from the root of the zoo."""

from __future__ import annotations

import os
import sys
import tempfile
import unittest

from monai.bundle import ConfigWorkflow

BUNDLE = os.path.join("models", "abdominal_mr_fewshot_segmentation")


def workflow(names: list[str], kind: str, output_dir: str) -> ConfigWorkflow:
    """Return a workflow of some configs, with everything small."""
    configs = os.path.join(BUNDLE, "configs")
    return ConfigWorkflow(
        config_file=[os.path.join(configs, name) for name in names],
        meta_file=os.path.join(configs, "metadata.json"),
        logging_file=os.path.join(configs, "logging.conf"),
        workflow_type=kind,
        bundle_root=BUNDLE,
        output_dir=output_dir,
    )


class TestAbdominalMRFewShotSegmentation(unittest.TestCase):
    """Training, evaluation and inference."""

    def setUp(self) -> None:
        """Make the package importable."""
        sys.path.insert(0, BUNDLE)
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def check(self, names: list[str], kind: str) -> None:
        """Run a workflow that has every property that MONAI asks for."""
        made = workflow(names, kind, self.folder.name)
        made.initialize()
        assert not made.check_properties()
        made.run()
        made.finalize()

    def test_training_evaluation_and_inference(self) -> None:
        """Learn, compare with the annotated scans, segment."""
        self.check(["train.yaml", "smoke.yaml"], "train")
        assert os.path.isfile(os.path.join(self.folder.name, "model.pt"))
        self.check(["train.yaml", "smoke.yaml", "evaluate.yaml"], "train")
        assert os.path.isfile(os.path.join(self.folder.name, "cases.csv"))
        self.check(["inference.yaml", "smoke.yaml"], "infer")
        assert os.listdir(os.path.join(self.folder.name, "masks"))


if __name__ == "__main__":
    unittest.main()
