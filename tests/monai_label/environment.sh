#!/usr/bin/env bash
# Make an environment in which a MONAI Label 0.8.5 server runs on a CPU:  environment.sh <folder>
# Pins and parts left out: see docs/monai_label.md.
set -euo pipefail
env=$1
[ -f "$env/.ready" ] && exit 0
python3 -m venv "$env"
pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install torch==2.13.0
pip install "monai==1.6.1" "numpy<2" nibabel scikit-image scipy pyyaml fire pytorch-ignite tensorboard tqdm \
    itk-core itk-io SimpleITK pynrrd "pydicom<3" "pynetdicom<3" pydicom-seg "dicomweb-client[gcp]<0.60" \
    uvicorn fastapi python-multipart httpx pydantic pydantic-settings python-dotenv requests requests-toolbelt \
    filelock safetensors pandas psutil cachetools expiringdict expiring_dict watchdog schedule timeloop shapely \
    passlib bcrypt pyjwt google-auth girder-client
# Without their requirements: those would bring CUDA, SAM2 and a dozen packages that this road does not touch.
pip install --no-deps monailabel==0.8.5 torchvision==0.28.0
# The server imports torchvision's Python part only; beside a CPU torch it asks for two operators by name.
"$env/bin/python" - <<'P'
import importlib.util
import pathlib

path = pathlib.Path(importlib.util.find_spec("torchvision").origin).with_name("_meta_registrations.py")
text, anchor = path.read_text(), "import torchvision.extension  # noqa: F401\n"
if "declared_here" not in text:
    declared = (
        "if not torchvision.extension._has_ops():\n"
        "    declared_here = torch.library.Library('torchvision', 'DEF')\n"
        "    for name in ('nms', 'qnms'):\n"
        "        declared_here.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    )
    path.write_text(text.replace(anchor, anchor + declared, 1))
P
"$env/bin/python" -c "import monailabel.app"
touch "$env/.ready"
