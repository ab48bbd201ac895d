# compress in a container; its text encoder is inside, so that it runs without a network:
#
#   docker build -t compress .                              on a CPU
#   docker build -t compress:gpu --build-arg BASE=gpu .     on an NVIDIA GPU, with TensorRT
#
#   docker run --rm --network none -v "$PWD":/data compress teacher.pt --labels labels.txt --target jetson
#
# Add `--user "$(id -u):$(id -g)"` to own the files that it writes, and `--gpus all` to the GPU image.
# PIP_INDEX_URL names another package index than pip's own, TORCH_INDEX one that torch alone comes from: an index of
# CPU builds saves the CPU image gigabytes.
ARG BASE=cpu

FROM python:3.11-slim AS cpu

# TensorRT 10.11, CUDA 12.9, Python 3.12. Releases before 24.11 have Python 3.10, which is too old for compress.
FROM nvcr.io/nvidia/tensorrt:25.06-py3 AS gpu

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG TORCH_INDEX
ENV PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY . .
RUN scripts/install-into.sh /opt/compress

FROM ${BASE}
COPY --from=build /opt/compress /opt/compress
# A user without an entry in /etc/passwd, as `--user` makes one, needs a name and a home where caches may lie.
ENV PATH=/opt/compress/bin:$PATH \
    HOME=/tmp \
    USER=compress \
    HF_HUB_OFFLINE=1
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["compress"]
