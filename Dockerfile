# maxagent on a TPU host: the locked dependencies, libtpu, the package, the configs. Build from the repository's root:
#   docker build --tag maxagent .
#   docker run --privileged --network=host --volume /data:/data maxagent train --config=configs/base_1b.py --workdir=/data/run
FROM python:3.11-slim

# Dependencies first: this layer is built again only when the lock changes.
WORKDIR /opt/maxagent
COPY requirements/ requirements/
RUN python -m pip install --no-cache-dir --requirement requirements/tpu.lock

COPY setup.py ./
COPY maxagent/ maxagent/
COPY kernels/ kernels/
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .

COPY configs/ configs/

# Runs write to a mounted folder, or to runs/ here; nothing else of the image is the user's.
RUN useradd --create-home --uid 1000 maxagent && install --directory --owner=maxagent runs
USER maxagent
ENTRYPOINT ["maxagent"]
CMD ["--help"]
