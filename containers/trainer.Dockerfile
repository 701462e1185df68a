# The trainer: every step of the pipeline runs in it, on Vertex AI, on Kubeflow and here through kfp's DockerRunner.
#
#   twophase containers build trainer
#   twophase containers build trainer --option=--build-arg=CUDA=yes     for machines with NVIDIA's accelerators
#
# Packages are those of the project's lock file, by version and hash. The code is copied as it is: nothing is built, so
# the end has no build tool and no compiler. CUDA's libraries (gigabytes, under NVIDIA's licence) come from their wheels,
# where TensorFlow looks for them; the driver is the machine's.
ARG BASE=python:3.11-slim

FROM ${BASE} AS packages
WORKDIR /build
COPY requirements.lock pyproject.toml ./
# uv reads hashes from a constraints file and installs extras by name; its own pin is the lock file's too.
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock >uv.lock \
 && python3 -m venv uv && uv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r uv.lock
RUN python3 -m venv --without-pip /opt/venv \
 && uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode --require-hashes \
        -r pyproject.toml --extra train --extra pipelines --extra google --extra aws --extra azure \
        -c requirements.lock
COPY containers/cuda.lock ./
ARG CUDA=
RUN if [ -n "${CUDA}" ]; then \
        uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --no-deps --require-hashes -r cuda.lock; \
    fi

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twophase trainer" \
      org.opencontainers.image.description="The steps of the two-phase pipeline" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/venv /opt/venv
COPY twophase /app/twophase
COPY components /app/components
COPY pipelines /app/pipelines
COPY compiled /app/compiled
# HOME: whoever an engine runs a step as, there is a place where libraries may keep what they like.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TF_CPP_MIN_LOG_LEVEL=3
WORKDIR /tmp
USER 1000:1000
# A step runs to its end; its exit status is its health.
HEALTHCHECK NONE
CMD ["python", "-m", "twophase", "--help"]
