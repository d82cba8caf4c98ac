FROM debian:bookworm-slim AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/qmri
# Dependencies first, so that a change of the program does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" \
        > requirements.txt \
    && /opt/qmri/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY qmri_bidsapp qmri_bidsapp
# The build context has no git history: --build-arg VERSION=$(git describe --tags --abbrev=0) names the release.
ARG VERSION=0.1.0.dev0
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_QMRI_BIDSAPP=${VERSION} /opt/qmri/bin/pip install --no-cache-dir --no-deps . \
    && /opt/qmri/bin/python -m compileall -q /opt/qmri/lib || true

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="qmri_bidsapp" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Quantitative-MRI maps from BIDS data, with their uncertainty"
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home qmri
COPY --from=build /opt/qmri /opt/qmri
# The program writes to the output folder, the work folder and /tmp only: any user id and a read-only file system work.
ENV PATH=/opt/qmri/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER qmri
WORKDIR /tmp
ENTRYPOINT ["qmri-bids"]
