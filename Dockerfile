# Loraloom's server. docs/install.md says how to build and run it.
#   docker build -t loraloom .                              for processors
#   docker build -t loraloom:cuda --build-arg TORCH=cu130 . for NVIDIA cards; rocm… for AMD's
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# A build of torch: the last part of an index at download.pytorch.org/whl (cpu, cu126, cu130, rocm6.4, xpu).
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
# Another version of torch than that of constraints.txt, for indexes that do not have it.
ARG TORCH_VERSION
ARG EXTRAS=ui
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/loraloom
WORKDIR /source
# torch by itself: it is by far the largest part, and stays in the cache while Loraloom changes.
COPY constraints.txt ./
RUN grep -v '^torch==' constraints.txt > others.txt \
    && version="${TORCH_VERSION:-$(sed -n 's/^torch==//p' constraints.txt)}" \
    && /opt/loraloom/bin/pip install --index-url "${TORCH_INDEX}" "torch==${version}"
COPY pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE NOTICE ./
COPY src ./src
RUN case "${TORCH}" in cu*) extras="${EXTRAS:+${EXTRAS},}cuda" ;; *) extras="${EXTRAS}" ;; esac \
    && /opt/loraloom/bin/pip install -c others.txt ".${extras:+[${extras}]}" einops \
    && /opt/loraloom/bin/pip install --no-deps spandrel==0.4.2

FROM ${BASE}
ARG UID=1000
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fonts-dejavu-core python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "${UID}" --create-home --shell /usr/sbin/nologin loraloom \
    && mkdir -p /models /data \
    && chown loraloom:loraloom /models /data
COPY --from=build /opt/loraloom /opt/loraloom
COPY docker/healthcheck.py /opt/loraloom/healthcheck.py
ENV PATH=/opt/loraloom/bin:${PATH} PYTHONUNBUFFERED=1 LORALOOM_MODELS=/models XDG_CACHE_HOME=/data/cache \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER loraloom
# /models: laid out like ComfyUI's models folder, may be read-only. /data: output, input, user, cache.
WORKDIR /data
VOLUME ["/models", "/data"]
EXPOSE 8188
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python3", "/opt/loraloom/healthcheck.py"]
ENTRYPOINT ["loraloom"]
# Listening to other machines, it asks for a token: LORALOOM_TOKEN.
CMD ["serve", "--listen", "0.0.0.0"]
