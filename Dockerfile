# The CPU, with the versions of requirements.txt. docs/install.md says how to build and run it.
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home mtrlib && install --directory --owner mtrlib --group mtrlib /mtrlib
USER mtrlib
WORKDIR /mtrlib
# --build-arg PIP_EXTRA_INDEX_URL=... with PyTorch's index of CPU builds spares the CUDA libraries.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
COPY --chown=mtrlib:mtrlib . .
RUN make .venv/installed
ENV PATH=/mtrlib/.venv/bin:$PATH
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "notebooks"]
