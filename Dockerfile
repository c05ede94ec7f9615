# syntax=docker/dockerfile:1
# LED on the official SGLang image; the tag is the pin of constraints.txt.
#   docker build -t led-sglang .
#   docker run --gpus all --shm-size 32g -p 127.0.0.1:30000:30000 -v led-models:/home/led/.cache/huggingface led-sglang \
#       --config server_configs/qwen3-4b-thinking-2507-led.yaml
ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.23-cu130

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml LICENSE README.md CHANGELOG.md ./
COPY led_sglang led_sglang
COPY patches patches
RUN pip wheel --no-deps --no-cache-dir --wheel-dir /wheels .

FROM ${SGLANG_IMAGE}
# --no-deps: the image's own SGLang is the one we were tested against, and nothing may replace it. `check` reads its
# sources and fails the build if they are not those of the manifest.
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-deps --no-cache-dir /wheels/*.whl \
    && python3 -m led_sglang.patches check
# 10001: no user of the image has that number, and Kubernetes' runAsNonRoot wants a number.
RUN useradd --create-home --uid 10001 led
WORKDIR /home/led
COPY --chown=led:led server_configs server_configs
USER 10001
ENV HOME=/home/led HF_HOME=/home/led/.cache/huggingface PYTHONUNBUFFERED=1 LED_SGLANG_CPU_PLATFORM=0
RUN mkdir -p /home/led/.cache/huggingface
EXPOSE 30000
# /health answers without an API key. Loading a 32B model takes minutes, hence the long start period.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:30000/health', timeout=8)"]
# Inside a container only the published port reaches it, so it listens on all of the container's addresses unless a file
# or the command line says otherwise: an argument here would beat `host:` and `port:` of a --config file.
ENV LED_SGLANG_HOST=0.0.0.0
ENTRYPOINT ["python3", "-m", "led_sglang.launch"]
