"""The runner image can do what tools need of it, as the user and under the limits of a run."""

import os
import subprocess
from pathlib import Path

import pytest

IMAGE = os.environ.get("RUNNER_IMAGE", "skriptoteket-runner")
TOOL = Path(__file__).parents[2] / "infra" / "tools" / "html_to_pdf_preview"

pytestmark = [pytest.mark.docker]


def _run_in_image(code: str, *options: str, stdin: bytes = b"") -> str:
    command = [
        *("docker", "run", "--rm", "--interactive", "--network", "none", "--read-only"),
        *("--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
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
        if os.environ.get("SKRIPTOTEKET_REQUIRE_DOCKER") == "1":
            pytest.fail(f"the runner image is required: {reason}")
        pytest.skip(f"no runner image: {reason}")


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
    assert output == "b'%PDF-' åäö ÅÄÖ 10001 10001 /work\n"


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


def test_the_html_tool_converts_its_sample_with_weasyprint() -> None:
    output = _run_in_image(
        "import json, os, sys\n"
        "os.mkdir('/tmp/out')\n"
        "os.environ.update(SKRIPTOTEKET_INPUT_DIR='/sample', SKRIPTOTEKET_OUTPUT_DIR='/tmp/out',\n"
        '    SKRIPTOTEKET_ACTION=\'{"action_id":"convert","input":{},"state":{}}\')\n'
        "exec(compile(sys.stdin.read(), 'script.py', 'exec'))\n"
        "print(run_tool('/sample', '/tmp/out')['outputs'][0]['message'], os.listdir('/tmp/out'))",
        "--volume",
        f"{TOOL / 'sample'}:/sample:ro",
        stdin=(TOOL / "tool.py").read_bytes(),
    )
    assert "veckobrev.pdf är klar: 1 sida, A4 stående. Gjord med WeasyPrint" in output
