# The image that runs execute in. Build it with infra/build-runner-image.sh, which makes the context:
#   apt-packages.txt  requirements.txt  wheels/ (pip itself among them)  runner/*.py  runner_sbom.py
# The base may come from a registry or from debootstrap; then all Debian packages are there already,
# and nothing in here needs a network.
# A tag, which moves; NAME@sha256:… is taken as well.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
COPY wheels/ requirements.txt /build/
# pip runs from its own wheel: the image itself has none, and needs none.
RUN python3 "$(echo /build/pip-*.whl)/pip" install --quiet --no-index --find-links /build --require-hashes \
        --no-cache-dir --no-compile --no-warn-script-location \
        --target /opt/packages -r /build/requirements.txt \
    && rm -rf /opt/packages/bin \
    # What packages test themselves with: compiled, 60 of 270 MB, and no tool imports it.
    && find /opt/packages -type d -name tests -prune -exec rm -r {} +
# Unchecked: nothing in the image changes, so no import has to look at the sources.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/packages
COPY runner/*.py /opt/skriptoteket/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/skriptoteket

FROM ${BASE_IMAGE} AS system
COPY apt-packages.txt /tmp/
RUN if ! dpkg-query -W $(cat /tmp/apt-packages.txt) >/dev/null 2>&1; then \
        apt-get update \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
            $(cat /tmp/apt-packages.txt) \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && rm /tmp/apt-packages.txt \
    && fc-cache -f \
    # No program may lend its owner's rights.
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && echo 'runner:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    # Each run is a user of its own (workers/sandbox/confinement.py); all of them have this name.
    # More lines would take time at each start, since the engine reads them.
    && seq -f 'runner:x:%.0f:10001::/tmp:/usr/sbin/nologin' 20000 24095 >> /etc/passwd \
    && echo 'runner:x:10001:' >> /etc/group \
    && mkdir /work && chown 10001:10001 /work
# A path file, not a variable: tools and what they start find the toolkit whatever their environment.
RUN printf '/opt/packages\n/opt/skriptoteket\n' \
        > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/skriptoteket.pth"
COPY --from=packages /opt/packages /opt/packages
COPY --from=packages /opt/skriptoteket /opt/skriptoteket

# In a stage of its own, since it looks at the wheels too and must leave nothing behind.
FROM system AS materials
COPY --from=packages /build /build
COPY runner_sbom.py /build/
RUN python3 /build/runner_sbom.py /build > /sbom.json

FROM system
COPY --from=materials /sbom.json /opt/skriptoteket/sbom.json
ENV PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 HOME=/tmp
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["python3", "/opt/skriptoteket/runner.py"]
