"""The runner image can do what tools need of it, as the user and under the limits of a run."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from requirements import skip_for_want_of

from workers.sandbox.confinement import GID, UIDS

IMAGE = os.environ.get("RUNNER_IMAGE", "skriptoteket-runner")
UID = UIDS[-1]  # a run is any of them
INFRA = Path(__file__).parents[2] / "infra"
TOOLS = INFRA / "tools"

pytestmark = [pytest.mark.docker]


def _run_in_image(code: str, *options: str, stdin: bytes = b"") -> str:
    command = [
        *("docker", "run", "--rm", "--interactive", "--network", "none", "--read-only"),
        *("--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--memory", "1g", "--memory-swap", "1g", "--cpus", "1", "--pids-limit", "256"),
        *("--user", f"{UID}:{GID}"),
        *(*options, "--entrypoint", "python3", IMAGE, "-W", "error", "-c", code),
    ]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    try:
        found = subprocess.run(
            ["docker", "image", "inspect", IMAGE], capture_output=True, timeout=20
        )
        reason = found.stderr.decode().strip() if found.returncode else ""
    except FileNotFoundError:
        reason = "there is no docker command"
    if reason:
        skip_for_want_of("DOCKER", f"no runner image: {reason}")


def test_it_makes_a_pdf_with_nordic_letters_as_the_unprivileged_user() -> None:
    output = _run_in_image(
        "import os, sys, warnings; warnings.simplefilter('ignore')\n"
        "import weasyprint\n"
        "document = weasyprint.HTML(string='<p lang=sv>åäö ÅÄÖ').render()\n"
        "open('/tmp/a.pdf', 'wb').write(document.write_pdf())\n"
        "text = ''\n"
        "def walk(box):\n"
        "    global text\n"
        "    text += getattr(box, 'text', '')\n"
        "    [walk(child) for child in getattr(box, 'children', ())]\n"
        "walk(document.pages[0]._page_box)\n"
        "print(open('/tmp/a.pdf', 'rb').read(5), text, os.getuid(), os.getgid(), os.getcwd())\n"
    )
    assert output == f"b'%PDF-' åäö ÅÄÖ {UID} {GID} /work\n"


def test_it_has_a_user_of_its_own_and_a_name_for_that_of_any_run() -> None:
    ids = [10001, *UIDS]
    code = f"import pwd; print({{pwd.getpwuid(id).pw_name for id in {ids}}})"
    assert _run_in_image(code) == "{'runner'}\n"
    assert _run_in_image("import os; print(os.getuid())", "--user", "") == "10001\n"


def test_it_has_fonts_that_hold_nordic_letters() -> None:
    output = _run_in_image(
        "import subprocess\n"
        "print(subprocess.run(['fc-list', ':lang=sv', 'family'], check=True, text=True,"
        " capture_output=True).stdout)"
    )
    assert "Liberation Sans" in output and "DejaVu Sans" in output


def test_it_has_a_font_for_emoji() -> None:
    code = "import subprocess; print(subprocess.check_output(['fc-match', ':charset=1f341']))"
    assert "NotoColorEmoji" in _run_in_image(code)


def test_tools_find_the_toolkit_whatever_their_environment() -> None:
    output = _run_in_image(
        "import subprocess, sys\n"
        "code = 'import skriptoteket_toolkit as t, weasyprint; print(t.read_inputs())'\n"
        "print(subprocess.check_output([sys.executable, '-I', '-c', code], env={}, text=True))"
    )
    assert output.strip() == "{}"


def test_nothing_in_it_lends_rights_and_nothing_can_be_written() -> None:
    output = _run_in_image(
        "import os\n"
        "lent = [os.path.join(d, f) for d, _, fs in os.walk('/usr') for f in fs\n"
        "        if os.lstat(os.path.join(d, f)).st_mode & 0o6000]\n"
        "own = [d for d, _, _ in os.walk('/opt') if os.access(d, os.W_OK)]\n"
        "print(lent, own)"
    )
    assert output == "[] []\n"


# What each library is there for, in one small real thing; `out` is what it has to print.
USES = {
    "pandas and openpyxl": (
        "import pandas\n"
        "frame = pandas.DataFrame({'Elev': ['Åsa', 'Bo', 'Åsa'], 'Poäng': [3, 4, 5]})\n"
        "frame.to_excel('/tmp/a.xlsx', index=False)\n"
        "read = pandas.read_excel('/tmp/a.xlsx')\n"
        "print(read.groupby('Elev')['Poäng'].mean().to_dict())",
        "{'Bo': 4.0, 'Åsa': 4.0}",
    ),
    "python-docx": (
        "import docx\n"
        "document = docx.Document()\n"
        "document.add_heading('Läxa', 1)\n"
        "document.save('/tmp/a.docx')\n"
        "print([(p.style.name, p.text) for p in docx.Document('/tmp/a.docx').paragraphs])",
        "[('Heading 1', 'Läxa')]",
    ),
    "pypdf, also with AES": (
        "import io, pypdf\n"
        "parts = []\n"
        "for width in (100, 200):\n"
        "    writer, out = pypdf.PdfWriter(), io.BytesIO()\n"
        "    writer.add_blank_page(width, 100)\n"
        "    writer.encrypt('hemligt å', algorithm='AES-256')\n"
        "    writer.write(out)\n"
        "    parts.append(out)\n"
        "merged, out = pypdf.PdfWriter(), io.BytesIO()\n"
        "for part in parts:\n"
        "    merged.append(pypdf.PdfReader(part, password='hemligt å'))\n"
        "merged.write(out)\n"
        "print([int(page.mediabox.width) for page in pypdf.PdfReader(out).pages])",
        "[100, 200]",
    ),
    "pillow": (
        "import subprocess\n"
        "from PIL import Image, ImageDraw, ImageFont\n"
        "path = subprocess.check_output(['fc-match', '-f', '%{file}', 'sans'], text=True)\n"
        "font = ImageFont.truetype(path, 40)\n"
        "def draw(text):\n"
        "    image = Image.new('1', (60, 60))\n"
        "    ImageDraw.Draw(image).text((5, 5), text, fill=1, font=font)\n"
        "    image.save('/tmp/a.png')\n"
        "    return Image.open('/tmp/a.png').tobytes()\n"
        # å is neither an a nor the box for a letter that the font lacks.
        "print(len({draw('å'), draw('a'), draw(chr(0x10FFFD)), draw(' ')}))",
        "4",
    ),
    "jinja2": (
        "import jinja2\n"
        "template = jinja2.Environment(autoescape=True).from_string('<b>{{ namn }}</b>')\n"
        "print(template.render(namn='Å & Ö'))",
        "<b>Å &amp; Ö</b>",
    ),
    "markdown-it-py": (
        "from markdown_it import MarkdownIt\n"
        "print(MarkdownIt().enable('table').render('**å**').strip())",
        "<p><strong>å</strong></p>",
    ),
}


@pytest.mark.parametrize("library", USES)
def test_each_library_does_a_small_real_thing(library: str) -> None:
    code, expected = USES[library]
    output = _run_in_image(f"{code}\nimport os; print(os.getuid())")
    assert output == f"{expected}\n{UID}\n"


def _read_sbom() -> dict[str, Any]:
    code = "print(open('/opt/skriptoteket/sbom.json', encoding='utf-8').read())"
    return dict(json.loads(_run_in_image(code)))


def test_its_bill_of_materials_names_all_that_is_installed() -> None:
    # Not by dpkg-query and importlib, which made the list: by what lies on the disk.
    code = (
        "import glob, json, os, re, sys\n"
        "status = open('/var/lib/dpkg/status', encoding='utf-8').read().split('\\n\\n')\n"
        "fields = [dict(re.findall(r'(?m)^([A-Z][a-z]+): (.*)$', entry)) for entry in status]\n"
        "debian = [(f['Package'], f['Version']) for f in fields\n"
        "          if f.get('Status') == 'install ok installed']\n"
        "found = [path for folder in sys.path for path in glob.glob(folder + '/*.dist-info')]\n"
        "python = [os.path.basename(path)[:-10].split('-') for path in found]\n"
        "print(json.dumps([debian, python]))"
    )
    debian, python = json.loads(_run_in_image(code))
    assert len(debian) > 80 and len(python) > 20
    listed = {
        (part["purl"][:8], part["name"], part["version"]) for part in _read_sbom()["components"]
    }
    expected = {("pkg:deb/", name, version) for name, version in debian}
    expected |= {("pkg:pypi", name.lower().replace("_", "-"), version) for name, version in python}
    assert expected - listed == set()
    assert {name for kind, name, _ in listed - expected} == {"python"}


def test_its_bill_of_materials_is_cyclonedx_and_the_same_for_the_same_image() -> None:
    sbom = _read_sbom()
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert "serialNumber" not in sbom and "timestamp" not in sbom["metadata"]
    parts = list(sbom["components"])
    for part in parts:
        if part["purl"].startswith("pkg:pypi/"):
            (digest,) = part["hashes"]
            assert digest["alg"] == "SHA-256" and len(digest["content"]) == 64
            assert part["licenses"]
    # Wheels bring libraries of their own, and some say which.
    bundled = [inner for part in parts for inner in part.get("components", [])]
    assert {"FreeType", "zlib"} <= {part["name"] for part in bundled}
    references = [part["bom-ref"] for part in parts + bundled]
    assert len(references) == len(set(references))
    # Most of Debian's copyright files can be read by a program.
    licensed = sum("licenses" in part for part in sbom["components"])
    assert licensed > 0.7 * len(sbom["components"])


def test_packages_come_without_their_own_tests_and_all_compiled() -> None:
    code = (
        "import os\n"
        "folders = list(os.walk('/opt/packages'))\n"
        "print([d for d, _, _ in folders if os.path.basename(d) == 'tests'],\n"
        "      [d for d, inner, files in folders if '__pycache__' not in inner\n"
        "       and any(f.endswith('.py') for f in files)])"
    )
    assert _run_in_image(code) == "[] []\n"


# The action to take on a tool's sample, words of the answer, and the files it leaves.
SAMPLES = {
    "html_to_pdf_preview": (
        "convert",
        "veckobrev.pdf är klar: 1 sida, A4 stående. Gjord med WeasyPrint",
        ["veckobrev.pdf"],
    ),
    "markdown_to_docx": (
        "convert",
        "Klart att ladda ned: lektionsplanering.docx.",
        ["lektionsplanering.docx"],
    ),
    "css_mall": (
        None,
        "Läsläxa Bröderna Lejonhjärta.pdf är klar.",
        ["Läsläxa Bröderna Lejonhjärta.html", "Läsläxa Bröderna Lejonhjärta.pdf"],
    ),
    "pdf_sla_ihop": ("merge", "är klar: 4 sidor ur 2 filer.", ["sammanslagen.pdf"]),
}


@pytest.mark.parametrize("folder", SAMPLES)
def test_tools_of_the_script_bank_do_their_sample(folder: str) -> None:
    action_id, words, files = SAMPLES[folder]
    sample = TOOLS / folder / "sample"
    uploads = sorted(path for path in sample.iterdir() if path.name != "inputs.json")
    inputs = sample / "inputs.json"
    environment = {
        "SKRIPTOTEKET_OUTPUT_DIR": "/tmp/out",
        "SKRIPTOTEKET_INPUT_MANIFEST": json.dumps(
            {"files": [{"name": path.name, "path": f"/sample/{path.name}"} for path in uploads]}
        ),
        "SKRIPTOTEKET_INPUTS": inputs.read_text("utf-8") if inputs.exists() else "{}",
    }
    if action_id:
        payload = {"action_id": action_id, "input": {}, "state": {}}
        environment["SKRIPTOTEKET_ACTION"] = json.dumps(payload)
    output = _run_in_image(
        "import json, os, sys\n"
        "os.mkdir('/tmp/out')\n"
        f"os.environ.update({environment!r})\n"
        "exec(compile(sys.stdin.read(), 'script.py', 'exec'))\n"
        "result = run_tool('/sample', '/tmp/out')\n"
        "said = [output.get('message', '') for output in result['outputs']]\n"
        "print(json.dumps([' '.join(said), sorted(os.listdir('/tmp/out'))]))",
        "--volume",
        f"{sample}:/sample:ro",
        stdin=(TOOLS / folder / "tool.py").read_bytes(),
    )
    said, made = json.loads(output)
    assert words in said
    assert made == files


# --- How it is built ---------------------------------------------------------------------------

# The script itself and a real engine, with next to nothing to build.
BUILD = """
source "$1"; shift
fill_context() { :; }
main "$@"
"""
Build = Callable[..., str]


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, timeout=60, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Names for an image and its base, which are removed in the end."""
    name = f"skriptoteket-test-{uuid4().hex[:8]}"
    yield name, f"{name}-base"
    made = _docker("image", "ls", "--quiet", "--filter", f"label=org.skriptoteket.test={name}")
    subprocess.run(["docker", "image", "rm", "--force", *set(made.split())], capture_output=True)


@pytest.fixture
def build(tmp_path: Path, names: tuple[str, str]) -> Build:
    """Call the script, in a directory of its own; returns its last line."""
    name, _ = names
    (tmp_path / "runner").mkdir()
    for path in ("runner/requirements.txt", "runner/apt-packages.txt", "runner_sbom.py"):
        (tmp_path / path).touch()
    (tmp_path / "runner" / "runner.py").touch()
    shutil.copy(INFRA / "build-runner-image.sh", tmp_path)
    recipe = f"ARG BASE_IMAGE\nFROM $BASE_IMAGE\nLABEL org.skriptoteket.test={name}\n"
    (tmp_path / "runner.Dockerfile").write_text(recipe)
    script = str(tmp_path / "build-runner-image.sh")

    def build(*arguments: str) -> str:
        command = ["bash", "-c", BUILD, "bash", script, "--name", name, *arguments]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()[-1]

    return build


def _make_base(name: str, base: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    packed = tmp_path / "base.tar"
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(packed), "file"], check=True)
    label = f"LABEL org.skriptoteket.test={name}"
    _docker("import", "--change", label, str(packed), base)


@pytest.mark.soak
def test_it_is_built_again_when_its_base_or_its_files_changed_and_only_then(
    build: Build, names: tuple[str, str], tmp_path: Path
) -> None:
    name, base = names
    built, current = f"{name} is built", f"{name} is current"
    _make_base(name, base, tmp_path, "first")
    assert [build("--base", base) for _ in range(2)] == [built, current]
    # The same name for another image, as after a pull.
    _make_base(name, base, tmp_path, "second")
    assert [build("--base", base, "--if-possible"), build("--base", base)] == [built, current]
    (tmp_path / "runner" / "runner.py").write_text("pass")
    assert [build("--base", base) for _ in range(2)] == [built, current]
    # Who has the image only has no reason to build it.
    _docker("image", "rm", base)
    assert build("--base", base, "--if-possible") == current


@pytest.mark.soak
def test_its_base_can_be_named_by_what_it_is(
    build: Build, names: tuple[str, str], tmp_path: Path
) -> None:
    name, base = names
    _make_base(name, base, tmp_path, "first")
    digest = _docker("image", "inspect", "--format", "{{.Id}}", base)
    assert build("--base", digest) == f"{name} is built"
    # Whatever has the name now.
    _make_base(name, base, tmp_path, "second")
    assert build("--base", digest) == f"{name} is current"
