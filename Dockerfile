# Two images from one file: `trainer` runs every step of the pipeline (torch, great_expectations), `control` the
# command line and whatever watches and submits (kfp, no torch). Build by digest in production:
#   docker build --target trainer --build-arg BASE_IMAGE=python:3.11-slim@sha256:... \
#     --build-arg REVISION=$(git rev-parse HEAD) -t REGISTRY/retrain/trainer:0.1.0 .
# torch's own wheels carry the CUDA user-space libraries: a CUDA base image would store them twice.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS builder
RUN python3 -m venv /opt/venv && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv>=0.8"
WORKDIR /src
COPY k8s/image/*.lock ./
COPY pyproject.toml README.md ./
COPY components components
COPY pipelines pipelines

FROM builder AS build-trainer
# The executor is what KFP starts in a pod; it needs nothing of kfp's own dependencies.
RUN UV="/opt/uv/bin/uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python" \
    && ${UV} --require-hashes -r trainer.lock \
    && ${UV} --require-hashes --no-deps -r executor.lock \
    && ${UV} "setuptools>=77" \
    && ${UV} --no-deps --no-build-isolation /src

FROM builder AS build-control
RUN UV="/opt/uv/bin/uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python" \
    && ${UV} --require-hashes -r control.lock \
    && ${UV} "setuptools>=77" \
    && ${UV} --no-deps --no-build-isolation /src

FROM ${BASE_IMAGE} AS runtime
ARG REVISION=
# Pods run without root and with a read-only root file system: only /tmp is written to.
ENV PATH=/opt/venv/bin:${PATH} HOME=/tmp MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GX_ANALYTICS_ENABLED=false RETRAIN_REVISION=${REVISION}
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["retrain"]

FROM runtime AS control
LABEL org.opencontainers.image.title="retrain control" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-control /opt/venv /opt/venv

FROM runtime AS trainer
LABEL org.opencontainers.image.title="retrain trainer" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-trainer /opt/venv /opt/venv
