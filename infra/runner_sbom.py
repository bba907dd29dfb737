"""The runner image's bill of materials: CycloneDX 1.6 JSON on standard output.

Runs inside the image, as a step of its build: `python3 runner_sbom.py WHEELS`, where WHEELS is the
directory that the Python packages were installed from. The same image gives the same bytes: no
serial number, no time. Only the standard library and dpkg-query are needed.
"""

import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]

IMAGE = "skriptoteket-runner"
COPYRIGHT = Path("/usr/share/doc")
DPKG_FORMAT = "\\t".join(
    f"${{{name}}}"
    for name in ("Package", "Version", "Architecture", "source:Package", "source:Version")
)
# A field `License` of older metadata may hold the whole text instead of a name.
LICENSE_NAME_MAX_CHARS = 80
CLASSIFIER = "License :: OSI Approved :: "


def make_sbom(wheels: Path) -> dict[str, Any]:
    """Return the document: Debian's packages, Python, and its packages with what they bundle."""
    components = [*list_debian_packages(), describe_python(), *list_python_packages(wheels)]
    components.sort(key=lambda component: component["purl"])
    own = {"type": "container", "bom-ref": IMAGE, "name": IMAGE}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": components,
    }


def list_debian_packages() -> Iterator[Component]:
    """Describe what dpkg has installed; scanners find a package's flaws under its source's name."""
    release = platform.freedesktop_os_release()
    distro = f"{release['ID']}-{release['VERSION_ID']}"
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}\\t" + DPKG_FORMAT + "\\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in listed.splitlines():
        status, name, version, architecture, source, source_version = line.split("\t")
        if not status.startswith("ii"):
            continue
        purl = f"pkg:deb/debian/{quote_purl(name)}@{quote_purl(version)}?arch={architecture}"
        purl += f"&distro={distro}"
        if source != name:
            purl += f"&upstream={quote_purl(source)}%40{quote_purl(source_version)}"
        yield make_component(name, version, purl, licenses=read_debian_licenses(name))


def read_debian_licenses(package: str) -> list[dict[str, Any]]:
    """Return the names that a package's machine-readable copyright file gives, where it has one."""
    try:
        text = (COPYRIGHT / package / "copyright").read_text("utf-8", "replace")
    except OSError:
        return []
    if "copyright-format/1" not in text[:2000]:
        return []
    names = re.findall(r"(?m)^License:[ \t]*(\S.*?)[ \t]*$", text)
    return [{"license": {"name": name}} for name in sorted(set(names))]


def describe_python() -> Component:
    """Describe the interpreter, which is no Debian package in every base image."""
    version = platform.python_version()
    purl = f"pkg:generic/python@{version}"
    return make_component("python", version, purl, licenses=[{"license": {"id": "PSF-2.0"}}])


def list_python_packages(wheels: Path) -> Iterator[Component]:
    """Describe every distribution on the path, with the hash of the wheel it came from."""
    hashes = {
        (normalize_name(path.name.split("-")[0]), path.name.split("-")[1]): path
        for path in wheels.glob("*.whl")
    }
    for distribution in distributions():
        name = normalize_name(distribution.name)
        purl = f"pkg:pypi/{name}@{quote_purl(distribution.version)}"
        component = make_component(
            name, distribution.version, purl, licenses=read_python_licenses(distribution)
        )
        if wheel := hashes.get((name, distribution.version)):
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        if bundled := list_bundled(distribution, purl):
            component["components"] = bundled
        yield component


def read_python_licenses(distribution: Distribution) -> list[dict[str, Any]]:
    """Return the SPDX expression of newer metadata, else the name, else the classifiers."""
    metadata = distribution.metadata
    for expression in metadata.get_all("License-Expression") or []:
        return [{"expression": expression}]
    name = "".join(metadata.get_all("License") or []).strip()
    if name and name != "UNKNOWN" and "\n" not in name and len(name) <= LICENSE_NAME_MAX_CHARS:
        return [{"license": {"name": name}}]
    classifiers = metadata.get_all("Classifier") or []
    names = [item.removeprefix(CLASSIFIER) for item in classifiers if item.startswith(CLASSIFIER)]
    return [{"license": {"name": name}} for name in sorted(set(names))]


def list_bundled(distribution: Distribution, owner: str) -> list[Component]:
    """Describe the libraries inside a wheel, as far as it brings its own lists (PEP 770)."""
    found: dict[str, Component] = {}
    for file in distribution.files or []:
        if len(file.parts) < 3 or file.parts[-2] != "sboms" or file.suffix != ".json":
            continue
        for part in json.loads(file.read_text("utf-8")).get("components", []):
            name, version, purl = (part.get(key) or "" for key in ("name", "version", "purl"))
            if name and version and not purl.startswith(owner):
                ref = f"{owner}#{purl or f'{name}@{version}'}"
                found[ref] = make_component(name, version, purl, ref=ref)
    return [found[ref] for ref in sorted(found)]


def make_component(
    name: str,
    version: str,
    purl: str,
    *,
    ref: str = "",
    licenses: list[dict[str, Any]] | None = None,
) -> Component:
    """Return one library; `ref` has to be unique in the document and is the purl unless given."""
    component: Component = {
        "type": "library",
        "bom-ref": ref or purl,
        "name": name,
        "version": version,
    }
    if purl:
        component["purl"] = purl
    if licenses:
        component["licenses"] = licenses
    return component


def normalize_name(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def quote_purl(text: str) -> str:
    """Escape a part of a package URL; the colon of an epoch stays."""
    return quote(text, safe="~:")


if __name__ == "__main__":
    json.dump(make_sbom(Path(sys.argv[1])), sys.stdout, ensure_ascii=False, indent=1)
    print()
