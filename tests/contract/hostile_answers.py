"""Hostile tools that attack by what they hand back, and users' files that attack tools."""

import io
import tarfile
import zipfile

from hostile_tools import CANARY, CRASHED, MIB, NOTHING, SUCCEEDED, TOOL_FAILED, VIOLATION, Hostile

ANSWERS = [
    Hostile(
        "result.json of 1 GB",
        """
        with open(os.environ["SKRIPTOTEKET_RESULT_PATH"], "wb") as file:
            file.truncate(1 << 30)
        os._exit(0)
        """,
        VIOLATION,
        "result.json",
        limits={"work_bytes": 2048 * MIB},
    ),
    Hostile(
        "result.json 100 000 levels deep",
        """
        write(os.environ["SKRIPTOTEKET_RESULT_PATH"], "[" * 100_000 + "]" * 100_000)
        os._exit(0)
        """,
        VIOLATION,
        "nästlat djupare",
    ),
    Hostile(
        "result.json of a million parts",
        """
        write(os.environ["SKRIPTOTEKET_RESULT_PATH"], "[" + "[]," * 340_000 + "{" * 100_000)
        os._exit(0)
        """,
        VIOLATION,
        "för många delar",
        limits={"result_max_bytes": 2 * MIB},
    ),
    Hostile(
        "result.json that is no JSON",
        'write(os.environ["SKRIPTOTEKET_RESULT_PATH"], "\\0{]"); os._exit(0)',
        VIOLATION,
        "inte giltig JSON",
    ),
    Hostile(
        "result.json that lies about artifacts",
        """
        document = {"contract_version": 2, "status": "succeeded", "outputs": [],
                    "next_actions": [], "state": None,
                    "artifacts": [{"path": "/etc/passwd", "bytes": 1}]}
        write(os.environ["SKRIPTOTEKET_RESULT_PATH"], json.dumps(document))
        os._exit(0)
        """,
        SUCCEEDED,
    ),
    Hostile(
        "a page full of nonsense",
        """
        return {"outputs": [{"kind": "html_sandboxed", "html": "<script>"}] * 5000
                + [{"kind": "okänd"}, None, {"kind": "json", "value": float("nan")}]}
        """,
        SUCCEEDED,
    ),
    Hostile(
        "control characters in what it prints",
        r'os.write(1, b"\0\x1b]0;titel\x07\xff\xfe\r\x08")',
        SUCCEEDED,
        reports="�\x1b]0;titel\x07��\r\x08",
    ),
    Hostile(
        "closing its own stdio",
        "os.closerange(0, 1024); return 'klar'",
        SUCCEEDED,
        reports="",
    ),
    Hostile("dying of a broken heart", "ctypes.string_at(0)", CRASHED, "utan resultat"),
]


FILES = [
    Hostile("links out", "os.symlink('/etc/passwd', output_dir + '/x')", VIOLATION, "en länk"),
    Hostile(
        "output that is a link itself",
        "os.rmdir(output_dir); os.symlink('/', output_dir)",
        VIOLATION,
        "inte är en vanlig fil: output",
    ),
    Hostile(
        "hard links to what is not its own",
        """
        for number, path in enumerate(("/etc/passwd", "/proc/1/environ", "/etc/hostname")):
            attempt(path, os.link, path, f"{output_dir}/{number}")
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "device nodes",
        """
        for kind in (stat.S_IFBLK, stat.S_IFCHR):
            for major, minor in ((1, 1), (1, 3), (8, 0), (10, 200), (254, 0)):
                attempt((kind, major), os.mknod, output_dir + "/x", 0o666 | kind,
                        os.makedev(major, minor))
        print(got, sorted(name for name in os.listdir("/dev") if name.startswith(("sd", "vd"))))
        """,
        SUCCEEDED,
        reports="[] []\n",
    ),
    Hostile("pipes", "os.mkfifo(output_dir + '/x')", VIOLATION, "inte är en vanlig fil: x"),
    Hostile(
        "deep directories",
        """
        os.chdir(output_dir)
        for _ in range(3000):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        """,
        VIOLATION,
        "för långt namn",
    ),
    Hostile(
        "broad directories",
        "[os.mkdir(f'{output_dir}/{number}') for number in range(5000)]",
        VIOLATION,
        "för många mappar",
    ),
    Hostile(
        "odd names that are harmless",
        """
        for name in ("-rf ~", "..%2f..%2fetc%2fpasswd", "a;rm -rf *", "$(id)", "å ä ö.html"):
            write(f"{output_dir}/{name}")
        """,
        SUCCEEDED,
    ),
    Hostile(
        "a name with a line break",
        "write(output_dir + '/a\\nContent-Type: x')",
        VIOLATION,
        "inte går att använda",
    ),
    Hostile(
        "a name that is no text",
        "os.close(os.open(os.fsencode(output_dir) + b'/\\xff\\xfe', os.O_CREAT))",
        VIOLATION,
        "inte går att använda",
    ),
    Hostile(
        "two names for one file",
        "write(output_dir + '/\\u00c5.txt'); write(output_dir + '/a\\u030a.TXT')",
        VIOLATION,
        "samma namn",
    ),
    Hostile(
        "files that cannot be read",
        "write(output_dir + '/x'); os.chmod(output_dir + '/x', 0)",
        VIOLATION,
        "inte går att läsa",
    ),
]


def _make_zip_bomb() -> dict[str, bytes]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("stor.txt", bytes(96 * MIB))
    return {"bomb.zip": packed.getvalue()}


def _make_tar_trap() -> dict[str, bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (f"../../../{CANARY}", f"/etc/{CANARY}", "../script.py", "ut/inuti.txt"):
            if name.startswith("ut/"):
                link = tarfile.TarInfo("ut")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc"
                archive.addfile(link)
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"hej\n"))
    return {"bomb.tar.gz": packed.getvalue()}


USER_FILES = [
    Hostile(
        "a zip bomb of the user's",
        'shutil.unpack_archive(input_dir + "/bomb.zip", "/work/packat-upp")',
        TOOL_FAILED,
        "fyllde sitt diskutrymme",
        files=_make_zip_bomb,
        limits={"work_bytes": 16 * MIB},
    ),
    Hostile(
        "a tar of the user's that leads out",
        """
        import tarfile
        tarfile.TarFile.extraction_filter = staticmethod(lambda entry, path: entry)
        with tarfile.open(input_dir + "/bomb.tar.gz") as archive:
            for entry in archive:
                attempt(entry.name, archive.extract, entry, output_dir)
        print(got)
        """,
        VIOLATION,
        "en länk",
        reports="['../script.py', 'ut']\n",  # the tool's own copy, and a link that goes nowhere
        files=_make_tar_trap,
    ),
]
