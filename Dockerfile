# imae in a container, where a folder of the host is the working folder:
#
#     docker build -t imae .
#     docker run --rm -v "$PWD:/work" imae train solver.prototxt
#
# torch for GPUs: docker build --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg ONNXRUNTIME= -t imae .
# and docker run --gpus all. Nobody has built it with docker yet; tests/test_dockerfile.py reads it.
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.13-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG ONNXRUNTIME=/tmp/imae/requirements/onnxruntime-cpu
COPY constraints.txt /tmp/imae/
COPY requirements /tmp/imae/requirements/
COPY --from=build /wheels /tmp/imae/wheels
# There, torch 2.13.0+cpu is newer than 2.13.0, and is what pip takes.
RUN pip install --no-cache-dir -c /tmp/imae/constraints.txt --extra-index-url $TORCH_INDEX \
    $ONNXRUNTIME /tmp/imae/wheels/*.whl && rm -r /tmp/imae
WORKDIR /work
ENTRYPOINT ["imae"]
CMD ["--help"]
