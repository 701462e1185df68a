# The gateway: what devices talk to. One folder, /state, holds its database, the clips and the update repository.
#
#   twophase containers build gateway
#   docker run -p 8443:8443 -v state:/state -v CERTIFICATES:/tls:ro twophase/gateway:0.1.0 \
#       --certificate /tls/gateway.pem --private-key /tls/gateway.key --target vertex --project P --region REGION
#   docker exec CONTAINER twophase gateway enrol porch
#
# Packages are those of the project's lock file, by version and hash, and of them only what the gateway needs: no
# TensorFlow, no LiteRT, no cloud SDK (for SageMaker, Azure ML or KServe put theirs on top). Runs as any user that may write to /state, with a read-only file system.
ARG BASE=python:3.11-slim

FROM ${BASE} AS packages
WORKDIR /build
COPY requirements.lock ./
RUN for name in numpy soundfile cffi pycparser soxr orjson pybase64 uvicorn h11 httptools uvloop starlette anyio idna \
        sqlalchemy pg8000 scramp asn1crypto python-dateutil six pyjwt cryptography prometheus-client httpx httpcore \
        certifi google-auth packaging pyasn1-modules pyasn1 urllib3 typer click shellingham rich pygments \
        markdown-it-py mdurl annotated-doc pydantic pydantic-core annotated-types typing-inspection typing-extensions; \
    do grep -q "^$name==" requirements.lock || { echo "$name is not in requirements.lock: make lock"; exit 1; }; \
       sed -n "/^$name==/,/[^\\\\]\$/p" requirements.lock; done >gateway.lock \
 && python3 -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r gateway.lock \
 && /opt/venv/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twophase gateway" \
      org.opencontainers.image.description="Takes devices' clips, asks the classifier, keeps the answers, serves gate updates" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/venv /opt/venv
COPY twophase/__init__.py twophase/__main__.py twophase/errors.py twophase/files.py /app/twophase/
COPY twophase/audio /app/twophase/audio
COPY twophase/release /app/twophase/release
COPY twophase/serving /app/twophase/serving
COPY twophase/local /app/twophase/local
COPY twophase/targets /app/twophase/targets
COPY twophase/gateway /app/twophase/gateway
COPY twophase/cli /app/twophase/cli
RUN printf '#!/bin/sh\nexec python -m twophase "$@"\n' >/usr/local/bin/twophase && chmod 755 /usr/local/bin/twophase \
 && python3 -m compileall -q /app \
 && install -d -o 1000 -g 1000 -m 700 /state
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TWOPHASE_GATEWAY_HOME=/state \
    HOME=/tmp
WORKDIR /tmp
USER 1000:1000
VOLUME /state
EXPOSE 8443
ENTRYPOINT ["python", "-m", "twophase", "gateway", "up", "--host", "0.0.0.0"]
