# The command `alpnet` in a container:
#   docker build -t alpnet .                                                    CPU
#   docker build -t alpnet --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime .   NVIDIA GPUs
#   docker run --rm -v "$PWD:/work" alpnet inference --dataset_dir scans --support_dir annotated
# Paths are those of the folder that is mounted at /work; results go there, too.
ARG BASE=python:3.12-slim
FROM ${BASE}

# For the CPU base: PyTorch's own index has builds without CUDA. A base that has PyTorch keeps its own.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/alpnet
COPY pyproject.toml MANIFEST.in constraints.txt README.md LICENSE CHANGELOG.md CONTRIBUTING.md metadata.json Makefile ./
COPY bundle bundle
COPY configs configs
COPY models models
RUN python -c 'import torch' 2> /dev/null \
    || python -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" --constraint constraints.txt torch
RUN grep -v '^torch==' constraints.txt > others.txt \
    && python -m pip install --no-cache-dir --constraint others.txt '.[export,dicom]' \
    && rm -rf build

RUN useradd --create-home --uid 1000 alpnet
USER 1000
WORKDIR /work
ENTRYPOINT ["alpnet"]
CMD ["--help"]
