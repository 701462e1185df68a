# The server: answers predictions of one release, or of many, on Vertex AI, SageMaker, Azure ML, KServe and anywhere else.
#
#   twophase containers build server
#   docker run -p 8080:8080 -v RELEASE:/mnt/models:ro twophase/server:0.1.0
#
# Packages are those of the project's lock file, by version and hash, and of them only what serving needs: no
# TensorFlow, no cloud SDK, no build tool. Runs as any user, also as root, with a read-only file system and a /tmp.
ARG BASE=python:3.11-slim

FROM ${BASE} AS packages
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
WORKDIR /build
COPY requirements.lock ./
# Named one by one: the command line's packages and LiteRT's tools would be half as much again.
RUN for name in numpy scipy soundfile cffi pycparser soxr ai-edge-litert uvicorn click h11 httptools uvloop orjson \
        pybase64 prometheus-client obstore typing-extensions; \
    do grep -q "^$name==" requirements.lock || { echo "$name is not in requirements.lock: make lock"; exit 1; }; \
       sed -n "/^$name==/,/[^\\\\]\$/p" requirements.lock; done >server.lock \
 && python3 -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r server.lock \
 && /opt/venv/bin/python -m pip uninstall --yes --quiet setuptools pip
# Of SciPy the front end needs the FFT, which needs the special functions; of LiteRT the interpreter; nobody debugs here.
RUN cd /opt/venv/lib/python3.11/site-packages \
 && find . -type d -name tests -prune -exec rm -r {} + \
 && strip --strip-unneeded uvloop/*.so httptools/parser/*.so ai_edge_litert/*.so obstore/*.so \
 && rm -r numpy/distutils ai_edge_litert/libLiteRtWebGpuAccelerator.so ai_edge_litert/tools ai_edge_litert/vendors \
 && cd scipy && rm -r cluster constants datasets differentiate fftpack integrate interpolate io linalg misc ndimage odr \
        optimize signal sparse spatial stats

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twophase server" \
      org.opencontainers.image.description="Predictions of two-phase releases, in every cloud's contract" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      com.amazonaws.sagemaker.capabilities.multi-models=true
COPY --from=packages /opt/venv /opt/venv
COPY twophase/__init__.py twophase/errors.py twophase/files.py /app/twophase/
COPY twophase/audio /app/twophase/audio
COPY twophase/release /app/twophase/release
COPY twophase/serving /app/twophase/serving
RUN python3 -m compileall -q /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /tmp
USER 1000:1000
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=2s CMD ["python", "-c", "import os, urllib.request as u; \
u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\", 8080)}/ping')"]
# SageMaker adds the argument `serve`.
ENTRYPOINT ["python", "-m", "twophase.serving"]
