# The device: listens, keeps, sends, updates its gate. One folder, /state, holds all that it must not lose.
#
#   twophase containers build device
#   docker run --rm -v state:/state --entrypoint twophase twophase/device:0.1.0 \
#       device enroll CODE --gateway https://HOST --state /state
#   arecord -q -t raw -f S16_LE -r 16000 -c 1 | docker run -i -v state:/state --log-opt max-size=10m twophase/device:0.1.0
#
# Packages are those of the project's lock file, by version and hash, and of them only what a device needs: no
# TensorFlow, no SciPy, no cloud SDK. Runs as any user that may write to /state, with a read-only file system.
ARG BASE=python:3.11-slim

FROM ${BASE} AS packages
WORKDIR /build
COPY requirements.lock ./
RUN for name in numpy soundfile cffi pycparser soxr ai-edge-litert \
        tuf securesystemslib urllib3 cryptography typer click shellingham rich pygments markdown-it-py mdurl \
        annotated-doc pydantic pydantic-core annotated-types typing-inspection typing-extensions; \
    do sed -n "/^$name==/,/[^\\\\]\$/p" requirements.lock; done >device.lock \
 && python3 -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r device.lock \
 && /opt/venv/bin/python -m pip uninstall --yes --quiet setuptools pip \
 && cd /opt/venv/lib/python3.11/site-packages \
 && find . -type d -name tests -prune -exec rm -r {} + \
 && rm -r ai_edge_litert/libLiteRtWebGpuAccelerator.so ai_edge_litert/tools ai_edge_litert/vendors

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twophase device" \
      org.opencontainers.image.description="Listens with a gate, keeps what it lets through, sends it when it can" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/venv /opt/venv
COPY twophase/__init__.py twophase/__main__.py twophase/errors.py twophase/files.py /app/twophase/
COPY twophase/audio /app/twophase/audio
COPY twophase/release /app/twophase/release
COPY twophase/device /app/twophase/device
COPY twophase/cli /app/twophase/cli
RUN printf '#!/bin/sh\nexec python -m twophase "$@"\n' >/usr/local/bin/twophase && chmod 755 /usr/local/bin/twophase \
 && python3 -m compileall -q /app /opt/venv \
 && install -d -o 1000 -g 1000 -m 700 /state
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TWOPHASE_DEVICE_STATE=/state \
    MALLOC_ARENA_MAX=1 \
    MALLOC_TRIM_THRESHOLD_=65536 \
    MALLOC_MMAP_THRESHOLD_=65536 \
    OPENBLAS_NUM_THREADS=1 \
    HOME=/tmp
WORKDIR /tmp
USER 1000:1000
VOLUME /state
ENTRYPOINT ["python", "-m", "twophase.device", "/state"]
