"""The multi-GPU configs of the bundle on phantoms, for the model zoo's CI; CPUs serve where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import tempfile
import unittest

import torch

BUNDLE = os.path.join("models", "abdominal_mr_fewshot_segmentation")


def run(names: list[str], run_id: str, output_dir: str) -> None:
    """Run a workflow by as many processes as there are GPUs, two at least."""
    files = [os.path.join(BUNDLE, "configs", name) for name in names]
    processes = max(2, torch.cuda.device_count())
    command = ["torchrun", "--standalone", f"--nproc_per_node={processes}", "-m", "monai.bundle", "run", run_id]
    keys = ["--config_file", str(files), "--bundle_root", BUNDLE, "--output_dir", output_dir]
    subprocess.check_call([*command, *keys], env={**os.environ, "PYTHONPATH": BUNDLE})


class TestAbdominalMRFewShotSegmentationMultiGPU(unittest.TestCase):
    """Training and evaluation by several processes."""

    def test_training_and_evaluation(self) -> None:
        """Learn, then compare with the annotated scans."""
        with tempfile.TemporaryDirectory() as folder:
            run(["train.yaml", "smoke.yaml", "multi_gpu_train.yaml"], "training", folder)
            assert os.path.isfile(os.path.join(folder, "model.pt"))
            run(["train.yaml", "smoke.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml"], "evaluating", folder)
            assert os.path.isfile(os.path.join(folder, "cases.csv"))


if __name__ == "__main__":
    unittest.main()
